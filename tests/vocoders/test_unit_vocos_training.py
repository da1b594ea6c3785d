"""unit-vocos in training: the loss falls, and what is trained is what the part renders."""

from __future__ import annotations

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
from speechlm_vocoders.pitch import track_pitch
from speechlm_vocoders.unit_vocos import UnitVocos
from speechlm_vocoders.vocos_training import UnitVocosOptions, UnitVocosTraining

SMALL: dict[str, Any] = {"dim": 32, "num_unit_layers": 1, "num_layers": 2, "ffn_factor": 2}
FRAMES = 25


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    clips = list(human_clips("prompts").values())[:4]
    return [load_audio(clip.path, 16_000) for clip in clips]


@pytest.fixture(scope="module")
def tokenizer(waves: list[Tensor]) -> LogMelKMeans:
    return LogMelKMeans.fit(waves, {"num_units": 60, "iterations": 2}, seed=1)


@pytest.fixture(scope="module")
def batch(tokenizer: LogMelKMeans, waves: list[Tensor]) -> SegmentBatch:
    """Pieces of recordings; the last is the end of one, and zero beyond it."""
    hop, start = tokenizer.hop_length, 10
    pieces = torch.stack([wave[start * hop : (start + FRAMES) * hop] for wave in waves])
    pieces[-1, 4000:] = 0
    codes = [tokenizer.encode(wave[None])[0].codes for wave in waves]
    return SegmentBatch(
        waves=pieces,
        lengths=torch.tensor([FRAMES * hop] * (len(waves) - 1) + [4000]),
        number=0,
        units=torch.stack([code[:, start : start + FRAMES] for code in codes]),
    )


def _training(tokenizer: LogMelKMeans, **options: Any) -> UnitVocosTraining:
    return UnitVocos.training(tokenizer, SMALL | options, seed=3)


def test_the_loss_falls_and_the_part_renders_what_was_trained(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer)
    assert training.needs == {"units"}
    assert (training.sample_rate, training.hop_length) == (16_000, 320)
    assert training.learning_rates == {}
    before = training.measure(batch)
    optimizer = torch.optim.Adam(training.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        loss, terms = training(replace(batch, number=step))
        assert terms.keys() == {"mel", "pitch"}
        loss.backward()
        assert all(p.grad is not None for p in training.parameters())
        optimizer.step()
    after = training.measure(batch)
    assert after["loss"] < 0.75 * before["loss"]
    assert after["pitch"] < 0.75 * before["pitch"]
    assert torch.equal(after["loss"], training.measure(batch)["loss"])

    part = training.part()
    assert part.tokenizer_fingerprint == tokenizer.fingerprint
    assert batch.units is not None
    units = Units(codes=batch.units[0], frame_rate=50.0, fingerprint=tokenizer.fingerprint)
    wave = part.decode([units])[0]
    loss = training.mel_loss(batch.waves[:1], wave[None])
    # At the pitch predicted, not at the one measured, its harmonics lie a little beside.
    assert loss < 0.85 * before["loss"]
    with torch.no_grad():
        next(training.parameters()).add_(1.0)
    assert torch.equal(part.decode([units])[0], wave)


def test_what_is_predicted_as_pitch_is_what_is_heard(
    tokenizer: LogMelKMeans, batch: SegmentBatch, waves: list[Tensor]
) -> None:
    training = _training(tokenizer)
    optimizer = torch.optim.Adam(training.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        training(replace(batch, number=step))[0].backward()
        optimizer.step()
    with torch.no_grad():
        training.generator.pitch_head.weight.zero_()
        training.generator.pitch_head.bias.fill_(torch.tensor(330.0 / 140.0).log())
    part = training.part()
    wave = part.decode(tokenizer.encode(waves[0][None]))[0]
    pitch, voiced = track_pitch(wave[None], 16_000, 160)
    assert voiced.float().mean() > 0.2
    assert (pitch[voiced].exp() / 330 - 1).abs().median() < 0.01


def test_the_sound_comes_when_its_unit_does(tokenizer: LogMelKMeans, batch: SegmentBatch) -> None:
    """What the network learns is not a frame late: silence and speech change at one place."""
    hop = tokenizer.hop_length
    assert batch.units is not None
    codes = torch.zeros(1, 1, FRAMES, dtype=torch.int64)
    codes[..., 12:] = 7
    wave = torch.zeros(1, FRAMES * hop)
    wave[:, 12 * hop :] = 0.3 * torch.randn(1, 13 * hop)
    one = replace(batch, waves=wave, units=codes, lengths=torch.tensor([FRAMES * hop]))
    training = _training(tokenizer)
    optimizer = torch.optim.Adam(training.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        training(one)[0].backward()
        optimizer.step()
    units = Units(codes=codes[0], frame_rate=50.0, fingerprint=tokenizer.fingerprint)
    loud = training.part().decode([units])[0].reshape(-1, hop).square().mean(dim=1).sqrt()
    assert loud[:11].max() < 0.3 * loud[12:].min()


def test_discriminators_come_in_when_told_and_both_sides_learn_from_one_sum(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer, adversarial_from=5, discriminator_channels=1)
    assert training.learning_rates == {r"^discriminators\.": 0.4}
    assert training.discriminators is not None
    loss, terms = training(replace(batch, number=4))
    assert terms.keys() == {"mel", "pitch"}
    loss.backward()
    assert all(p.grad is None for p in training.discriminators.parameters())
    loss, terms = training(replace(batch, number=5))
    assert terms.keys() == {"mel", "pitch", "generator", "features", "discriminators"}
    loss.backward()
    assert all(p.grad is not None for p in training.parameters())
    adversarial = 0.02 * terms["generator"] + 0.05 * terms["features"] + terms["discriminators"]
    torch.testing.assert_close(loss, terms["mel"] + 0.5 * terms["pitch"] + adversarial)


def test_it_trains_in_mixed_precision(tokenizer: LogMelKMeans, batch: SegmentBatch) -> None:
    training = _training(tokenizer)
    torch.manual_seed(0)
    exact, _ = training(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = training(batch)
    loss.backward()
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def test_what_lies_beyond_a_recordings_end_counts_for_nothing(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    assert batch.units is not None
    training = _training(tokenizer)
    noisy = batch.waves.clone()
    noisy[-1, 4000:] = 0.5
    units = batch.units.clone()
    units[-1, :, 13:] = 5
    other = replace(batch, waves=noisy, units=units)
    assert torch.equal(training.measure(batch)["loss"], training.measure(other)["loss"])
    units[-1, :, 12:] = 5
    other = replace(batch, waves=noisy, units=units)
    assert not torch.equal(training.measure(batch)["loss"], training.measure(other)["loss"])


def test_where_no_voice_is_asked_for_the_mean_of_those_heard_speaks(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer, speaker_dim=4)
    assert training.needs == {"units", "speaker"}
    voices = torch.randn(3, len(batch.waves), 4)
    for speakers in voices:
        loss, _ = training(replace(batch, speakers=speakers))
        loss.backward()
        training.measure(replace(batch, speakers=9 * speakers))
    expected = voices.reshape(-1, 4).mean(dim=0)
    torch.testing.assert_close(training.part().model.mean_speaker, expected)
    again = _training(tokenizer, speaker_dim=4)
    again.load_state_dict(training.state_dict())
    again(replace(batch, speakers=voices[0]))
    assert not torch.equal(again.generator.mean_speaker, expected)
    torch.testing.assert_close(again.num_voices, torch.tensor(16.0))


def test_units_that_sound_alike_begin_alike(tokenizer: LogMelKMeans) -> None:
    features = tokenizer.unit_features
    rows = _training(tokenizer).generator.embeddings[0].weight[:-1]
    apart, embedded = torch.pdist(features / features.std(dim=0)), torch.pdist(rows)
    assert torch.corrcoef(torch.stack([apart, embedded]))[0, 1] > 0.8
    assert torch.equal(rows, _training(tokenizer).generator.embeddings[0].weight[:-1])
    other = UnitVocos.training(tokenizer, SMALL, seed=4)
    assert not torch.equal(rows, other.generator.embeddings[0].weight[:-1])


@pytest.mark.parametrize(
    ("rate", "hop", "expected"),
    [
        (16_000, 320, (160, 640, 4, 8)),
        (16_000, 640, (160, 640, 2, 4)),
        (24_000, 1920, (240, 960, 1, 2)),
        (44_100, 512, (512, 2048, 7, 14)),
        (16_000, 100, (100, 400, 13, 26)),
    ],
)
def test_sizes_follow_the_tokenizers_rate(
    rate: int, hop: int, expected: tuple[int, int, int, int]
) -> None:
    class Tokenizer:
        sample_rate, hop_length = rate, hop
        num_codebooks, vocab_size = 3, 50
        fingerprint = "units-of-mine"

    config = UnitVocosOptions().config_for(Tokenizer())  # type: ignore[arg-type]
    model = config.model
    assert (model.spectral_hop, model.fft_size, model.lookahead, config.block) == expected
    assert model.codebook_sizes == (50, 50, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 3}, "unknown key 'vocoder.options.dims'; did you mean"),
        ({"spectral_hop": 150}, "spectral_hop must divide the tokenizer's hop_length (320)"),
        ({"lookahead": 1}, "lookahead must be at least 2 where windows of 640 samples"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"adversarial_from": -1}, "adversarial_from must be at least 0, got -1"),
        ({"adversarial_s": 0}, "adversarial_s must be above 0, got 0"),
        ({"pitch_weight": -0.1}, "pitch_weight must be at least 0, got -0.1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tokenizer: LogMelKMeans, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        _training(tokenizer, **options)


def test_units_that_do_not_last_one_frame_are_refused() -> None:
    class Merged:
        variable_rate = True
        fingerprint = "merged-units"

    with pytest.raises(PluginError, match="do not last one frame each: train the vocoder for"):
        UnitVocos.training(Merged(), {}, seed=0)  # type: ignore[arg-type]
