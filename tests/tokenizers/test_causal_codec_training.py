"""causal-codec learns, from sound alone, with discriminators, and from a teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_causal_codec import SMALL, human_waves, segments
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError, PluginError
from speechlm.protocols import SegmentBatch
from speechlm_tokenizers.causal_codec import CausalCodec
from speechlm_tokenizers.causal_codec_training import CausalCodecTraining
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.causal_codec import CausalCodecDecoder

TINY_CRITICS = {
    "discriminator_channels": 2,
    "discriminator_periods": (2, 3),
    "discriminator_scales": 1,
    "adversarial_segment_s": 0.1,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    LogMelKMeans.fit(human_waves(20), {"num_units": 32, "iterations": 5}, seed=1).save(folder)
    return folder


def _begin(**options: Any) -> CausalCodecTraining:
    training = CausalCodec.training({**SMALL, **options}, 0)
    assert isinstance(training, CausalCodecTraining)
    return training


def _train(
    training: CausalCodecTraining, steps: int, first: int = 0, rate: float = 3e-3
) -> list[dict[str, float]]:
    """A plain loop; gives what each step reported."""
    optimizer = torch.optim.AdamW(training.parameters(), lr=rate)
    reported = []
    for number in range(first, first + steps):
        loss, terms = training(segments(number))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.parameters(), 1.0)
        optimizer.step()
        reported.append({"loss": float(loss.detach()), **{n: float(t) for n, t in terms.items()}})
    return reported


@torch.no_grad()
def _measure(training: CausalCodecTraining) -> dict[str, float]:
    training.eval()
    found = {name: float(value) for name, value in training.measure(segments(10_000)).items()}
    training.train()
    return found


def test_a_short_training_sounds_nearer_and_brings_codes_into_use() -> None:
    training = _begin()
    before = _measure(training)
    _train(training, 60)
    after = _measure(training)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["perplexity"] > before["perplexity"] + 5
    assert (_codes_in_use(training) > 20).all()


def test_training_that_ends_before_its_codebooks_is_no_codec() -> None:
    training = _begin(codebook_warmup=3)
    _train(training, 3)
    with pytest.raises(ConfigError, match="ended at 3: raise train"):
        training.part()
    _train(training, 1, first=3)
    assert training.part().num_codebooks == 3


def test_rounded_numbers_learn_too() -> None:
    training = _begin(quantizer="fsq", fsq_values=(4, 4, 4))
    before = _measure(training)
    _train(training, 30)
    after = _measure(training)
    assert after["loss"] < 0.6 * before["loss"]
    assert after["loss"] < after["mel_first"]
    assert (_codes_in_use(training) > 10).all()


def test_what_is_trained_is_what_streams() -> None:
    """The network in one piece, as training sees it, and the parts' blocks sound alike."""
    training = _begin()
    _train(training, 10)
    wave, model, late = segments(5, rows=1).waves, training.model, training.config.lookahead
    used = torch.tensor([SMALL["num_codebooks"]])
    with torch.no_grad():
        done = model.quantizers.quantize(model.quantizers.project(model.encoder(wave)), used)
        hidden = model.quantizers.merge([some.vectors for some in done], used)
        hidden = F.pad(hidden, (0, 0, 0, late))
        noise = torch.randn(1, hidden.shape[1] * 320, generator=torch.Generator().manual_seed(0))
        whole = model.decoder(hidden, noise)[0][0, late * 320 :]
    codec = training.part()
    units = codec.encode(wave)[0]
    assert torch.equal(units.codes, done[0].codes[0])
    sound = CausalCodecDecoder.for_tokenizer(codec).decode([units])[0]
    assert torch.allclose(sound, whole.clamp(-1, 1), atol=1e-3)
    assert sound.std() > 0.01


def test_the_part_does_not_go_on_learning() -> None:
    training = _begin()
    _train(training, 4)
    codec = training.part()
    tensors = copy.deepcopy(codec.tensors)
    _train(training, 2, first=4)
    assert all(torch.equal(tensor, codec.tensors[name]) for name, tensor in tensors.items())
    assert training.part().fingerprint != codec.fingerprint


def test_measuring_changes_nothing_and_repeats() -> None:
    training = _begin()
    _train(training, 4)
    state = copy.deepcopy(training.state_dict())
    assert _measure(training) == _measure(training)
    assert all(torch.equal(state[name], value) for name, value in training.state_dict().items())


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been() -> None:
    """All that changes is in its state; what is drawn hangs on the seed and the batch's number."""
    straight, stopped = _begin(), _begin()
    with torch.no_grad():
        for number in range(3):
            straight(segments(number))
            stopped(segments(number))
        torch.manual_seed(99)
        resumed = _begin()
        resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
        for number in range(3, 6):
            expected, _ = straight(segments(number))
            torch.rand(number)  # what others draw in between
            got, _ = resumed(segments(number))
            assert torch.equal(expected, got)


def test_beginnings_of_segments_count_in_no_loss() -> None:
    training = _begin(context_frames=5, loss_floor=0.0, gain_db=0.0)
    batch = segments(0)
    heard: list[Tensor] = []
    training.mel_loss.register_forward_pre_hook(lambda module, args: heard.extend(args))
    training(batch)
    assert torch.equal(heard[0], batch.waves[:, 5 * 320 :])
    assert heard[1].shape == heard[0].shape


def test_what_cannot_be_heard_counts_in_no_loss() -> None:
    """A recording's floor, of -90 dB or none at all, says nothing about a codec."""
    training = _begin(loss_floor=1e-3)
    quiet = 1e-5 * torch.randn(2, 6400, generator=torch.Generator().manual_seed(0))
    distance = training._mel_distance(quiet, torch.zeros(2, 6400), torch.Generator())
    assert distance < 0.02 < training.mel_loss(quiet, torch.zeros(2, 6400))


def test_segments_are_met_at_other_levels_and_never_clip() -> None:
    training = _begin(gain_db=12.0)
    waves = torch.cat(
        [segments(0).waves, 0.9 * torch.sign(segments(1).waves), torch.zeros(1, 6400)]
    )
    changed = training._at_another_level(waves, torch.Generator().manual_seed(0))
    gains = changed[:12].norm(dim=1) / waves[:12].norm(dim=1)
    assert gains.std() > 0.2
    assert ((gains > 10**-0.6 - 1e-4) & (gains < 10**0.6 + 1e-4)).all()
    assert changed.abs().max() <= 1.0 + 1e-6
    loud = torch.full((1, 100), 1.5)
    assert (training._at_another_level(loud.expand(50, -1), torch.Generator())).max() <= 1.5 + 1e-6


def test_recordings_shorter_than_a_segment_can_be_learnt_from() -> None:
    training = _begin(codebook_warmup=0)
    batch = segments(0)
    batch.waves[:, 500:] = 0
    short = SegmentBatch(
        waves=batch.waves[:, :801], lengths=torch.full((6,), 500), number=batch.number
    )
    loss, _ = training(short)
    loss.backward()
    assert torch.isfinite(loss)


def test_discriminators_join_at_their_step_and_both_sides_learn() -> None:
    training = _begin(adversarial_from=3, **TINY_CRITICS)
    critics = training.discriminators
    assert critics is not None
    before = copy.deepcopy(critics.state_dict())
    reported = _train(training, 5)
    assert "discriminators" not in reported[2]
    assert {"generator", "features", "discriminators"} <= reported[3].keys()
    changed = [not torch.equal(before[name], value) for name, value in critics.state_dict().items()]
    assert any(changed)
    waves = segments(9).waves
    fake = (0.5 * waves).requires_grad_()
    terms = training._adversarial(waves, fake, torch.Generator())
    for name, moves in (("generator", True), ("features", True), ("discriminators", False)):
        (pull,) = torch.autograd.grad(terms[name], fake, retain_graph=True, allow_unused=True)
        assert (pull is not None and bool(pull.abs().sum() > 0)) == moves


def test_without_a_step_there_are_no_discriminators() -> None:
    assert _begin().discriminators is None


@pytest.mark.parametrize("semantic", ["residual", "split"])
def test_a_teacher_moves_the_first_codebook_towards_its_units(semantic: str, teacher: Path) -> None:
    """Nothing but the vectors can move: the layer that they are seen through is held fixed."""
    distances = {}
    for weight in (1e-6, 20.0):
        training = _begin(semantic=semantic, teacher=str(teacher), semantic_weight=weight)
        assert training.lesson is not None
        training.lesson.requires_grad_(False)
        _train(training, 3)
        before = _measure(training)["semantic"] / weight
        _train(training, 25, first=3)
        distances[weight] = _measure(training)["semantic"] / weight / before
    assert distances[20.0] < 0.85
    assert distances[20.0] < distances[1e-6] - 0.1


@pytest.mark.parametrize("semantic", ["residual", "split"])
def test_the_lesson_pulls_the_first_codebook_alone(semantic: str, teacher: Path) -> None:
    training = _begin(semantic=semantic, teacher=str(teacher), codebook_warmup=0)
    training(segments(0))
    batch = segments(1)
    quantizers = training.model.quantizers
    vectors = [
        some.detach().requires_grad_()
        for some in quantizers.project(training.model.encoder(batch.waves))
    ]
    done = quantizers.quantize(vectors, torch.full((6,), 3))
    lesson = training._lesson_of(batch, done)["semantic"]
    lesson.backward()
    assert vectors[0].grad is not None
    assert vectors[0].grad.abs().sum() > 0
    # A step against the gradient comes nearer, through the codes' vectors themselves.
    moved = done[0].first.detach() - 0.5 * vectors[0].grad / vectors[0].grad.abs().max()
    targets, known = training._teacher(batch, 20, training.config)  # type: ignore[misc]
    assert training.lesson is not None
    assert training.lesson(moved, targets, known) < training.lesson(done[0].first, targets, known)
    if semantic == "split":
        assert vectors[1].grad is None


def test_a_teacher_of_another_rate_is_heard_at_the_right_time(teacher: Path) -> None:
    """Frames of 40 ms take the unit, of 20 ms, that begins in their middle."""
    options = {"semantic": "split", "teacher": str(teacher)}
    sizes = {"hop_length": 960, "spectral_hop": 240, "synthesis_window": 960}
    training = _begin(**options, **sizes, sample_rate=24_000)
    tokenizer = LogMelKMeans.load(teacher)
    batch = segments(3, rows=2, samples=9600)
    assert training._teacher is not None
    targets, known = training._teacher(batch, 10, training.config)
    from speechlm.audio import resample

    waves = resample(batch.waves, 24_000, 16_000)
    for row, units in enumerate(tokenizer.encode(waves)):
        features = tokenizer.unit_features - tokenizer.unit_features.mean(dim=0)
        assert torch.equal(targets[row], features[units.codes[0, 1::2]][:10])
    assert known.all()


def test_beyond_a_recordings_end_a_teacher_says_nothing(teacher: Path) -> None:
    training = _begin(semantic="residual", teacher=str(teacher))
    batch = segments(0)
    lengths = torch.tensor([6400, 3200, 1, 320, 321, 6400])
    short = SegmentBatch(waves=batch.waves, lengths=lengths, number=0)
    assert training._teacher is not None
    _, known = training._teacher(short, 20, training.config)
    assert known.sum(dim=1).tolist() == [20, 10, 1, 1, 2, 20]


def test_a_teacher_that_hears_more_than_its_units_teaches_that(tmp_path: Path) -> None:
    """A self-supervised encoder's features themselves, around the mean of its centroids."""
    from small_encoders import save_encoder

    from speechlm_tokenizers.ssl_kmeans import SSLKMeans

    save_encoder("hubert", tmp_path / "encoder")
    options = {"model": str(tmp_path / "encoder"), "layer": 1, "num_units": 16, "iterations": 2}
    SSLKMeans.fit(human_waves(8), options, seed=1).save(tmp_path / "teacher")
    training = _begin(semantic="split", teacher=str(tmp_path / "teacher"), codebook_warmup=0)
    assert training._teacher is not None
    batch = segments(0, rows=2)
    targets, known = training._teacher(batch, 20, training.config)
    encoder = SSLKMeans.load(tmp_path / "teacher")
    for row, wave in enumerate(batch.waves):
        heard = encoder.features(wave) - encoder.unit_features.mean(dim=0)
        assert torch.equal(targets[row, known[row]], heard[:20])
    assert {"semantic"} <= _train(training, 2)[-1].keys()


def test_a_teacher_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="unknown tokenizer"):
        _begin(semantic="split", teacher="nowhere")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="was not written by speechlm"):
        _begin(semantic="split", teacher=str(tmp_path))


def test_half_precision_trains_too() -> None:
    training = _begin(codebook_warmup=1)
    with torch.autocast("cpu", torch.bfloat16):
        for number in range(3):
            loss, _ = training(segments(number))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(
        parameter.grad is None or torch.isfinite(parameter.grad).all()
        for parameter in training.parameters()
    )


def _codes_in_use(training: CausalCodecTraining) -> Tensor:
    """Distinct codes of each codebook in some speech, int64 [K]."""
    codec = training.part()
    codes = torch.cat([codec.encode(wave[None])[0].codes for wave in human_waves(20)], dim=1)
    return torch.tensor([row.unique().numel() for row in codes])
