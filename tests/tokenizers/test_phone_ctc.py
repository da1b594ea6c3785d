"""phone-ctc: the layers of w2v-BERT, units that are the same however heard, and its training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.cli.main import main
from speechlm.errors import CheckpointError, ConfigError, InputError
from speechlm.protocols import SegmentBatch
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.phone_ctc import PhoneCTC, PhoneCTCConfig
from speechlm_tokenizers.phone_ctc_model import FRAME, MARGIN, EncoderShape, LogMels
from speechlm_tokenizers.phone_ctc_training import CTCTraining

SHAPE = EncoderShape(
    num_layers=3, model_dim=24, ffn_dim=32, num_heads=2, kernel_size=5, left_distance=8
)
ENCODER = {
    "num_layers": 3, "model_dim": 24, "ffn_dim": 32, "num_heads": 2, "kernel_size": 5,
    "left_distance": 8,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "labels": "characters",
    "num_units": 100,
    "bottleneck_layer": 2,
    "encoder": ENCODER,
    "window_s": 0.4,
    "context_s": 0.12,
    "dropout": 0.0,
    "quantize_after": 10,
}


def noise(samples: int, seed: int = 0) -> Tensor:
    """Noise whose colour changes every 50 ms."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.randn(samples, generator=generator)
    tone = torch.randint(1, 40, (samples // 800 + 1,), generator=generator)
    phase = (tone.repeat_interleave(800)[:samples] * math.pi / 45).cumsum(0)
    return 0.05 * wave + 0.3 * torch.sin(phase)


@pytest.fixture(scope="module", params=[1, 2], ids=["50Hz", "25Hz"])
def tokenizer(request: pytest.FixtureRequest) -> PhoneCTC:
    """Random weights, the codes where vectors of the encoder lie."""
    config = PhoneCTCConfig(**{**OPTIONS, "encoder": SHAPE, "pooling": request.param})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        training = PhoneCTC.training({**OPTIONS, "pooling": request.param}, seed=1)
        for parameter in training.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    with torch.no_grad():
        features, frames = training.body.features(noise(90_000)[None], torch.tensor([90_000]))
        vectors, _ = training.body.lower(features, frames)
    codebook = vectors[0, :100].clone()
    return PhoneCTC(config, {**training.tensors(), "codebook": codebook})


def test_it_keeps_every_promise_of_a_tokenizer(tokenizer: PhoneCTC) -> None:
    lengths = (1, 320, 6400, 8001, 12_800, 40_000)
    waves = [noise(length, seed) for seed, length in enumerate(lengths, start=1)]
    used = torch.cat([tokenizer.encode(wave[None])[0].codes for wave in waves], dim=1)
    assert used.unique().numel() > 50
    check_tokenizer(tokenizer, waves)


@settings(max_examples=12, deadline=None)
@given(samples=st.integers(0, 30_000), chunk=st.integers(1, 20_000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: PhoneCTC, samples: int, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, noise(samples), max(chunk, samples // 50))


def test_a_recording_of_one_window_is_computed_in_one_piece(tokenizer: PhoneCTC) -> None:
    """Longer ones have seams, which more context makes fewer."""

    def seamless(context_s: float, samples: int) -> float:
        config = {"context_s": context_s, "window_s": 0.4, "pooling": tokenizer.config.pooling}
        long = PhoneCTCConfig(**{**OPTIONS, "encoder": SHAPE, **config})
        one = PhoneCTCConfig(**{**OPTIONS, "encoder": SHAPE, **config, "window_s": 60.0})
        wave = noise(samples)[None]
        codes = [PhoneCTC(c, tokenizer._tensors).encode(wave)[0].codes for c in (long, one)]
        return float((codes[0] == codes[1]).double().mean())

    assert seamless(0.12, 8319) == 1.0
    assert seamless(0.12, 40_000) < seamless(1.0, 40_000)
    assert seamless(1.0, 40_000) > 0.5


def test_labels_are_read_from_the_units_alone(tokenizer: PhoneCTC) -> None:
    wave = noise(20_000)
    scores = tokenizer.scores(wave)
    assert scores.shape == (math.ceil(20_000 / FRAME), 1 + len(tokenizer.labels))
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(len(scores)), atol=1e-5)
    assert set(tokenizer.transcribe(wave)) <= set(tokenizer.labels.alphabet)
    assert tokenizer.scores(torch.zeros(0)).shape == (0, 1 + len(tokenizer.labels))
    other = PhoneCTC(
        tokenizer.config, {**tokenizer._tensors, "codebook": tokenizer.unit_features.flip(0)}
    )
    assert torch.allclose(other.scores(wave), scores, atol=1e-5)


# The encoder against transformers', on the same weights.


def test_features_and_layers_are_those_of_transformers(tokenizer: PhoneCTC, tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    tokenizer.save(tmp_path / "tokenizer")
    assert main(["export", str(tmp_path / "tokenizer"), "-o", str(tmp_path / "encoder")]) == 0
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "encoder")
    theirs = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    assert type(theirs).__name__ == "Wav2Vec2BertModel"
    wave = noise(32_000)
    padded = torch.nn.functional.pad(wave, (MARGIN, MARGIN))
    given = extractor(padded.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
    features, frames = LogMels(80)(wave[None], torch.tensor([32_000]))
    assert frames.tolist() == [100]
    assert (features - given).abs().max() < 1e-4
    encoder = tokenizer._body.encoder
    with torch.no_grad():
        expected = theirs(given, output_hidden_states=True).hidden_states
        hidden = encoder.project(given)
        for layer in range(SHAPE.num_layers):
            assert (hidden - expected[layer]).abs().max() < 1e-4
            hidden = encoder.run(hidden, layer, layer + 1)
        assert (hidden - expected[-1]).abs().max() < 1e-4


def test_company_in_a_batch_changes_nothing_in_training(tokenizer: PhoneCTC) -> None:
    lengths = torch.tensor([9000, 20_000, 5000])
    waves = torch.zeros(3, 20_000)
    for row, length in zip(waves, lengths.tolist(), strict=True):
        row[:length] = noise(length, length)
    body = tokenizer._body
    features, frames = body.features(waves, lengths)
    vectors, counts = body.lower(features, frames)
    for row in range(3):
        alone, own = body.features(waves[row : row + 1, : lengths[row]], lengths[row : row + 1])
        expected, count = body.lower(alone, own)
        assert count[0] == counts[row]
        assert torch.allclose(vectors[row, : count[0]], expected[0], atol=1e-4)


def test_an_exported_encoder_is_a_start_for_training(tokenizer: PhoneCTC, tmp_path: Path) -> None:
    tokenizer.export_encoder(tmp_path / "encoder")
    options = {name: value for name, value in OPTIONS.items() if name != "encoder"}
    training = PhoneCTC.training({**options, "model": str(tmp_path / "encoder")}, seed=1)
    for name, tensor in training.body.encoder.state_dict().items():
        assert torch.equal(tensor, tokenizer._tensors[f"encoder.{name}"])
    with pytest.raises(ConfigError, match="brings its own shape: expected no"):
        PhoneCTC.training({**OPTIONS, "model": str(tmp_path / "encoder")}, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "wav2vec2"}, "model_type 'wav2vec2-bert', got 'wav2vec2'"),
        ({"position_embeddings_type": "rotary"}, "'relative_key', got 'rotary'"),
        ({"hidden_size": None}, "model_dim: input should be a valid integer, got None"),
        ({"num_hidden_layers": 4}, r"lacks the tensor encoder\.layers\.3"),
        ({"feature_projection_input_dim": 100}, r"weight is \[160\]"),
        ({"intermediate_size": 30}, r"config\.json says \[30"),
    ],
    ids=str,
)
def test_another_encoder_is_refused(
    tokenizer: PhoneCTC, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "encoder"
    tokenizer.export_encoder(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    options = {name: value for name, value in OPTIONS.items() if name != "encoder"}
    with pytest.raises(CheckpointError, match=message):
        PhoneCTC.training({**options, "model": str(folder)}, seed=1)


def test_a_truncated_part_is_refused(tokenizer: PhoneCTC, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "part")
    weights = tmp_path / "part" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        PhoneCTC.load(tmp_path / "part")


# Training.

TEXTS = ("one", "two three", "four", "a")


def tones() -> tuple[Tensor, Tensor]:
    """A recording for each of TEXTS: one tone a letter."""
    waves, lengths = torch.zeros(4, 16_000), []
    for row, text in zip(waves, TEXTS, strict=True):
        pitch = torch.tensor([(ord(letter) - 90) / 12 for letter in text])
        phase = pitch.repeat_interleave(1600).cumsum(0)
        row[: len(phase)] = 0.3 * torch.sin(phase)
        lengths.append(len(phase))
    return waves, torch.tensor(lengths)


def batch(number: int, texts: tuple[str, ...] | None = TEXTS) -> SegmentBatch:
    waves, lengths = tones()
    return SegmentBatch(waves=waves, lengths=lengths, number=number, texts=texts)


def train(training: CTCTraining, first: int, last: int, optimizer: Any = None) -> list[float]:
    optimizer = optimizer or torch.optim.AdamW(training.parameters(), lr=5e-3, weight_decay=0.0)
    losses = []
    for number in range(first, last):
        loss, terms = training(batch(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert all(torch.isfinite(term) for term in terms.values())
    return losses


def test_training_lowers_the_loss_and_the_units_are_then_used() -> None:
    training = PhoneCTC.training(OPTIONS, seed=1)
    assert training.whole
    assert training.needs == {"text"}
    before = training.measure(batch(0))
    losses = train(training, 0, 60)
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    after = training.measure(batch(0))
    assert after["loss"] < 0.5 * before["loss"]
    assert after["error_rate"] <= 1 <= before["error_rate"] + 1
    tokenizer = training.part()
    assert tokenizer.config.model is None
    check_tokenizer(tokenizer, [noise(length) for length in (20_000, 3000)])
    assert training.part().fingerprint == tokenizer.fingerprint


def test_the_same_seed_trains_the_same_and_a_state_goes_on_as_it_was() -> None:
    one, two, other = (PhoneCTC.training(OPTIONS, seed=seed) for seed in (1, 1, 2))
    assert train(one, 0, 6) == train(two, 0, 6) != train(other, 0, 6)
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    sgd = [torch.optim.SGD(model.parameters(), lr=1e-4) for model in (one, other)]
    expected = train(one, 6, 14, sgd[0])  # the codebook starts amid these
    other_seed = PhoneCTC.training(OPTIONS, seed=1)
    other_seed.load_state_dict(state)
    optimizer = torch.optim.SGD(other_seed.parameters(), lr=1e-4)
    assert train(other_seed, 6, 14, optimizer) == expected


def test_before_the_codebook_starts_there_is_no_tokenizer() -> None:
    training = PhoneCTC.training(OPTIONS, seed=1)
    train(training, 0, 3)
    with pytest.raises(ConfigError, match=r"starts after 10 steps, but training ended at 3: raise"):
        training.part()


def test_a_recording_with_more_labels_than_frames_counts_nothing_and_is_reported() -> None:
    training = PhoneCTC.training(OPTIONS, seed=1)
    texts = ("one", "two three", "four", "a" * 200)
    loss, terms = training(batch(0, texts))
    assert terms["unaligned"] == 0.25
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in training.parameters() if p.grad is not None)


def test_recordings_without_texts_are_refused() -> None:
    training = PhoneCTC.training(OPTIONS, seed=1)
    with pytest.raises(InputError, match="expected a text with each recording, got none"):
        training(batch(0, None))
    with pytest.raises(InputError, match="expected a text that says something, got ''"):
        training(batch(0, ("one", "", "four", "a")))
    with pytest.raises(InputError, match="no label for '1' of the text"):
        training(batch(0, ("one", "1", "four", "a")))


def test_phones_are_the_default_labels() -> None:
    pytest.importorskip("espeakng_loader")
    options = {name: value for name, value in OPTIONS.items() if name != "labels"}
    training = PhoneCTC.training(options, seed=1)
    assert torch.isfinite(training(batch(0))[0])
    with pytest.raises(ConfigError, match="no language 'xx'"):
        PhoneCTC.training({**options, "language": "xx"}, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_unit": 5}, "did you mean 'tokenizer.options.num_units'"),
        ({"encoder": {"layers": 5}}, "unknown key 'tokenizer.options.encoder.layers'"),
        ({"labels": "words"}, "labels: .*'words'"),
        ({"num_units": 1}, "num_units must be at least 2, got 1"),
        ({"bottleneck_layer": 4}, r"within 1\.\.encoder\.num_layers \(3\), got 4"),
        ({"pooling": 3}, "pooling must be 1, 2 or 4, got 3"),
        ({"window_s": 0}, r"window_s within 0\.1\.\.600 s"),
        ({"dropout": 1.0}, "dropout at least 0 and below 1"),
        ({"encoder": {**ENCODER, "kernel_size": 4}}, "kernel_size must be odd, got 4"),
        ({"encoder": {**ENCODER, "num_heads": 5}}, r"num_heads \(5\) must divide model_dim \(24\)"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhoneCTC.training({**OPTIONS, **options}, seed=1)
