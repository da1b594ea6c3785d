"""unit-hifigan in training: the loss falls, and what is trained is what the part renders."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import ConfigError, PluginError
from speechlm.protocols import SegmentBatch
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.hifigan_training import UnitHiFiGANTraining
from speechlm_vocoders.unit_hifigan import UnitHiFiGAN

SMALL: dict[str, Any] = {
    "channels": 32,
    "embedding_dim": 16,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "duration_dim": 16,
    "discriminator_channels": 2,
}
FRAMES = 20


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    clips = [load_audio(clip.path, 16_000) for clip in list(human_clips().values())[:12]]
    return [clip for clip in clips if len(clip) > 12_000][:4]


@pytest.fixture(scope="module")
def tokenizer(waves: list[Tensor]) -> LogMelKMeans:
    return LogMelKMeans.fit(waves, {"num_units": 60, "iterations": 2}, seed=1)


@pytest.fixture(scope="module")
def batch(tokenizer: LogMelKMeans, waves: list[Tensor]) -> SegmentBatch:
    """Pieces of recordings; the last is the end of one, and zero beyond it."""
    hop, start = tokenizer.hop_length, 15
    pieces = torch.stack([wave[start * hop : (start + FRAMES) * hop] for wave in waves])
    pieces[-1, 4000:] = 0
    codes = [tokenizer.encode(wave[None])[0].codes for wave in waves]
    return SegmentBatch(
        waves=pieces,
        lengths=torch.tensor([FRAMES * hop] * (len(waves) - 1) + [4000]),
        number=0,
        units=torch.stack([code[:, start : start + FRAMES] for code in codes]),
    )


def _training(tokenizer: LogMelKMeans, **options: Any) -> UnitHiFiGANTraining:
    return UnitHiFiGAN.training(tokenizer, SMALL | options, seed=3)


def test_the_loss_falls_and_the_part_renders_what_was_trained(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer, adversarial_from=100)
    assert training.needs == {"units"}
    assert (training.sample_rate, training.hop_length) == (16_000, 320)
    before = training.eval().measure(batch)
    training.train()
    optimizer = torch.optim.Adam(training.parameters(), lr=4e-3)
    for step in range(15):
        optimizer.zero_grad()
        loss, terms = training(replace(batch, number=step))
        assert terms.keys() == {"mel", "duration"}
        loss.backward()
        optimizer.step()
    after = training.eval().measure(batch)
    assert after["loss"] < 0.7 * before["loss"]
    assert after["duration"] < before["duration"]
    part = training.part()
    assert part.tokenizer_fingerprint == tokenizer.fingerprint
    assert batch.units is not None
    units = Units(codes=batch.units[0], frame_rate=50.0, fingerprint=tokenizer.fingerprint)
    with torch.no_grad():
        trained = training.generator(training.generator.embed(batch.units[:1]))[0]
    torch.testing.assert_close(part.decode([units])[0], trained, atol=1e-5, rtol=0)


def test_discriminators_come_in_when_told_and_both_sides_learn_from_one_sum(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer, adversarial_from=2)
    for number, playing in ((1, False), (2, True)):
        training.zero_grad()
        loss, terms = training(replace(batch, number=number))
        loss.backward()
        assert ("discriminators" in terms) == playing
        learning = [p.grad is not None for p in training.discriminators.parameters()]
        assert set(learning) == {playing}
        assert all(p.grad is not None for p in training.generator.parameters())
    adversarial = terms["generator"] + 2 * terms["features"] + terms["discriminators"]
    torch.testing.assert_close(loss, 45 * terms["mel"] + terms["duration"] + adversarial)


def test_it_trains_in_mixed_precision(tokenizer: LogMelKMeans, batch: SegmentBatch) -> None:
    training = _training(tokenizer, adversarial_from=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = training(batch)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in training.parameters())


def test_what_is_beyond_a_recording_s_end_counts_for_nothing(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer).eval()
    assert batch.units is not None
    units = batch.units.clone()
    # What is heard of the last real frame depends on neighbours: take those far behind.
    units[-1, :, -1] = (units[-1, :, -1] + 1) % 60
    same, other = training.measure(batch), training.measure(replace(batch, units=units))
    assert same["duration"] == other["duration"]
    torch.testing.assert_close(same["loss"], other["loss"], atol=1e-4, rtol=0)


def test_durations_are_learnt_from_runs_that_no_end_cuts(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer, duration_dropout=0.0)
    # Runs of 2 | 3 1 | cut, then of 4 | 2 | cut at the recording's end.
    codes = torch.tensor([[1, 1, 2, 2, 2, 5, 7, 7, 7, 7], [9, 9, 9, 9, 3, 3, 8, 8, 0, 0]])
    short = replace(
        batch,
        waves=torch.zeros(2, 3200),
        lengths=torch.tensor([3200, 8 * 320]),
        units=codes[:, None],
    )
    _, terms = training(short)
    logs = []
    for row, runs in (([1, 2, 5, 7], [1, 2]), ([9, 3, 8], [1])):
        embedded = training.generator.embeddings[0](torch.tensor(row)).T[None]
        logs.append(training.generator.durations(embedded)[0, runs])
    expected = torch.tensor([3.0, 1.0, 2.0]).add(1).log()
    torch.testing.assert_close(terms["duration"], (torch.cat(logs) - expected).square().mean())
    nothing = replace(short, units=torch.zeros(2, 1, 10, dtype=torch.int64))
    assert training(nothing)[1]["duration"] == 0


def test_voices_are_learnt_and_their_mean_is_the_default(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer, speaker_dim=5)
    assert training.needs == {"units", "speaker"}
    voices = torch.randn(8, 5)
    for some in voices.split(4):
        loss, _ = training(replace(batch, speakers=some))
    loss.backward()
    assert training.generator.speaker.weight.grad.abs().max() > 0
    training.eval().measure(replace(batch, speakers=voices[:4] + 1))
    again = _training(tokenizer, speaker_dim=5)
    again.load_state_dict(training.state_dict())
    part = again.part()
    torch.testing.assert_close(part.model.mean_speaker, voices.mean(dim=0))
    units = Units(codes=torch.tensor([[1, 2]]), frame_rate=50.0, fingerprint=tokenizer.fingerprint)
    assert torch.equal(
        part.decode([units])[0], part.decode([units], speaker=part.model.mean_speaker)[0]
    )


def test_the_seed_alone_decides_the_first_weights(tokenizer: LogMelKMeans) -> None:
    torch.manual_seed(7)
    one = _training(tokenizer).part().fingerprint
    state = torch.random.get_rng_state()
    two = _training(tokenizer).part().fingerprint
    assert torch.equal(torch.random.get_rng_state(), state)
    other = UnitHiFiGAN.training(tokenizer, SMALL, seed=4).part().fingerprint
    assert one == two != other


def test_the_sound_may_be_of_another_rate_than_what_the_tokenizer_hears(
    tokenizer: LogMelKMeans,
) -> None:
    part = _training(tokenizer, sample_rate=24_000).part()
    assert (part.sample_rate, part.hop_length) == (24_000, 480)
    units = Units(
        codes=torch.zeros(1, 5).long(), frame_rate=50.0, fingerprint=part.tokenizer_fingerprint
    )
    assert part.decode([units])[0].shape == (5 * 480,)


def test_further_codebooks_become_side_tables(tokenizer: LogMelKMeans) -> None:
    pair = copy.copy(tokenizer)
    pair.num_codebooks, pair.codebook_sizes = 2, (60, 9)  # type: ignore[attr-defined]
    model = _training(pair).config.model
    assert (model.num_units, model.side_sizes) == (60, (9,))


@pytest.mark.parametrize(
    ("hop", "rates"),
    [(320, (5, 4, 4, 4)), (640, (5, 4, 4, 4, 2)), (480, (5, 4, 4, 3, 2)), (1920, (8, 8, 5, 3, 2))],
)
def test_upsampling_follows_from_the_samples_a_unit(
    tokenizer: LogMelKMeans, hop: int, rates: tuple[int, ...]
) -> None:
    assert _training(tokenizer, sample_rate=50 * hop).config.model.upsample_rates == rates


def test_learning_rates_name_the_discriminators_alone(tokenizer: LogMelKMeans) -> None:
    training = _training(tokenizer, discriminator_rate=0.25)
    ((pattern, rate),) = training.learning_rates.items()
    assert rate == 0.25
    matched = {
        name.split(".")[0] for name, _ in training.named_parameters() if re.match(pattern, name)
    }
    assert matched == {"discriminators"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chanels": 8}, r"unknown key 'vocoder\.options\.chanels'; did you mean"),
        ({"channels": 30}, "channels must be a multiple of"),
        ({"sample_rate": 16_001}, r"sample_rate \(16001\) must give whole samples a unit at 50 Hz"),
        ({"sample_rate": 50 * 13}, "13 samples a unit have no factors of at most 11"),
        ({"upsample_rates": [5, 4, 4]}, r"must have the product 320, .* got \[5, 4, 4\]"),
        ({"mel_weight": -1.0}, "mel_weight must be at least 0"),
        ({"duration_dropout": 1.0}, "duration_dropout must be at least 0 and below 1"),
        ({"duration_dim": 0, "predict_durations": True}, "needs a duration predictor"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tokenizer: LogMelKMeans, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _training(tokenizer, **options)


def test_units_of_more_than_a_frame_are_refused(tokenizer: LogMelKMeans) -> None:
    merged = copy.copy(tokenizer)
    merged.variable_rate = True  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="train the vocoder for the tokenizer below it"):
        _training(merged)
