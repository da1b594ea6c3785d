"""whisper-vq gives what transformers and a slow reading of GLM-4-Voice's flags give, streamed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import small_whisper
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError, InputError
from speechlm.protocols import SegmentBatch
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.whisper_vq import WhisperVQ
from speechlm_tokenizers.whisper_vq_model import Past, WhisperEncoder, WhisperMels, WhisperShape

WINDOW = 32_000
BLOCK = 16 * 320


def speech(samples: int, seed: int = 0) -> Tensor:
    """Noise that swells and fades, as loudness decides what Whisper flattens."""
    generator = torch.Generator().manual_seed(seed)
    swell = torch.sin(torch.arange(samples) / 3000).square() + 1e-3
    return 0.2 * swell * torch.randn(samples, generator=generator)


def spread(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights whose codes lie where the encoder's vectors do, so that many are in use."""
    tensors = small_whisper.weights(config)
    encoder = encoder_of(config)
    mels = WhisperMels(config["num_mel_bins"])
    spectra = mels.spectra(torch.stack([speech(WINDOW + 240, seed) for seed in range(50, 60)]))
    loudest = spectra.amax(dim=(1, 2), keepdim=True)
    with torch.no_grad():
        real = torch.ones(len(spectra), WINDOW // 320, dtype=torch.bool)
        vectors = encoder(mels.compress(spectra, loudest), real, Past()).flatten(0, 1)
    tensors["model.encoder.codebook.weight"] = vectors[: config["quantize_vocab_size"]].clone()
    return tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper") / "glm"
    return small_whisper.save(folder, small_whisper.GLM, spread(small_whisper.GLM))


@pytest.fixture(scope="module", params=["window", "block"])
def tokenizer(checkpoint: Path, request: pytest.FixtureRequest) -> WhisperVQ:
    options = {"model": str(checkpoint), "stream": request.param}
    assert not WhisperVQ.needs_corpus(options)
    return WhisperVQ.fit(iter(()), options, seed=1)


def test_it_keeps_every_promise_of_a_tokenizer(tokenizer: WhisperVQ) -> None:
    """Lengths around the ends of blocks and windows are among them."""
    ends = (1, 1279, BLOCK, BLOCK + 40, 2 * BLOCK + 41, WINDOW, 2 * WINDOW + 1281)
    waves = [speech(length, seed) for seed, length in enumerate(ends)]
    used = torch.cat([tokenizer.encode(wave[None])[0].codes for wave in waves], dim=1)
    assert used.unique().numel() > 50
    check_tokenizer(tokenizer, waves)


@settings(max_examples=12, deadline=None)
@given(samples=st.integers(0, 2 * WINDOW), chunk=st.integers(1, 40_000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: WhisperVQ, samples: int, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, speech(samples), max(chunk, samples // 50))


def test_a_block_is_known_before_the_window_has_ended(checkpoint: Path) -> None:
    options = {"model": str(checkpoint), "stream": "block"}
    tokenizer = WhisperVQ.fit(iter(()), options, seed=1)
    assert tokenizer.lookahead == BLOCK + 40 - tokenizer.hop_length
    wave = speech(WINDOW)
    assert tokenizer.stream().push(wave[: BLOCK + 40]).shape == (1, 4)
    assert tokenizer.stream().push(wave[: BLOCK + 39]).shape == (1, 0)


def test_blocks_and_windows_agree_once_the_loudest_sound_has_come(checkpoint: Path) -> None:
    """Only what lies 80 dB below a window's loudest sound can tell them apart."""
    by_window, by_block = (
        WhisperVQ.fit(iter(()), {"model": str(checkpoint), "stream": stream}, seed=1)
        for stream in ("window", "block")
    )
    assert by_window.fingerprint != by_block.fingerprint
    wave = speech(3 * WINDOW).flip(0)
    one, other = (tok.encode(wave[None])[0].codes for tok in (by_window, by_block))
    assert torch.equal(one, other)
    quiet_first = torch.cat([1e-6 * speech(BLOCK), speech(WINDOW - BLOCK)])
    one, other = (tok.encode(quiet_first[None])[0].codes for tok in (by_window, by_block))
    assert not torch.equal(one, other)


# Parity with others' code, on the same weights.


def plain_config(**changes: Any) -> dict[str, Any]:
    """A plain Whisper's configuration with a codebook beside it, and no flags."""
    quantized = {"quantize_vocab_size": 50, "quantize_position": 3, "pooling_kernel_size": None}
    return {**small_whisper.SIZES, **quantized, **changes}


def encoder_of(config: dict[str, Any]) -> WhisperEncoder:
    encoder = WhisperEncoder(WhisperShape.of_checkpoint(config)).eval()
    tensors = small_whisper.weights(config)
    ours = encoder.state_dict()
    encoder.load_state_dict({name: tensors[f"model.encoder.{name}"] for name in ours})
    return encoder


@pytest.mark.parametrize("position", [1, 2, 3])
def test_without_flags_it_is_the_encoder_of_transformers(position: int) -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs

    config = plain_config(quantize_position=position)
    theirs = Theirs(WhisperConfig(**small_whisper.SIZES)).eval()
    tensors = small_whisper.weights(config)
    theirs.load_state_dict({name: tensors[f"model.encoder.{name}"] for name in theirs.state_dict()})
    mels = torch.randn(2, 20, 200, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(mels, output_hidden_states=True).hidden_states[position]
        got = encoder_of(config)(mels, torch.ones(2, 100, dtype=torch.bool), Past())
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("num_mels", [80, 128])
def test_log_mels_are_those_of_transformers(num_mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    wave = speech(20_480)
    expected = WhisperFeatureExtractor(feature_size=num_mels)(
        wave.numpy(), sampling_rate=16_000, return_tensors="pt", padding="longest"
    )["input_features"][0]
    mels = WhisperMels(num_mels)
    padded = F.pad(wave[None], (200, 200), mode="reflect")[0]
    spectra = mels.spectra(padded)[:, :-1]
    assert (mels.compress(spectra, spectra.max()) - expected).abs().max() < 1e-4


def slow_codes(config: dict[str, Any], tensors: dict[str, Tensor], wave: Tensor) -> Tensor:
    """One window by the definition: every pair of frames asked whether it may meet."""
    get = {name.removeprefix("model.encoder."): tensor for name, tensor in tensors.items()}
    dim, heads = config["d_model"], config["encoder_attention_heads"]
    padded = F.pad(wave, (0, -len(wave) % 1280))
    mels = WhisperMels(config["num_mel_bins"])
    spectra = mels.spectra(F.pad(padded[None], (200, 200), mode="reflect")[0])[:, :-1]
    hidden = mels.compress(spectra, spectra.max())[None]
    for name, stride in (("conv1", 1), ("conv2", 2)):
        sides = (2, 0) if config["encoder_causal_convolution"] else (1, 1)
        hidden = F.conv1d(
            F.pad(hidden, sides), get[f"{name}.weight"], get[f"{name}.bias"], stride=stride
        )
        hidden = F.gelu(hidden)
    hidden = hidden[0].T
    hidden = hidden + get["embed_positions.weight"][: len(hidden)]
    real = torch.arange(len(hidden)) * 320 < len(wave)
    block = config["quantize_causal_block_size"]
    for index in range(config["quantize_position"]):
        allowed = torch.zeros(len(hidden), len(hidden), dtype=torch.bool)
        for asking in range(len(hidden)):
            for heard in range(len(hidden)):
                if config["encoder_causal_attention"]:
                    allowed[asking, heard] = heard <= asking
                elif block is None:
                    allowed[asking, heard] = real[heard]
                else:
                    allowed[asking, heard] = heard // block <= asking // block and real[heard]

        def linear(name: str, given: Tensor, layer: str = f"layers.{index}.") -> Tensor:
            return F.linear(given, get[f"{layer}{name}.weight"], get.get(f"{layer}{name}.bias"))

        def norm(name: str, given: Tensor, layer: str = f"layers.{index}.") -> Tensor:
            weight, bias = get[f"{layer}{name}.weight"], get[f"{layer}{name}.bias"]
            return F.layer_norm(given, (dim,), weight, bias)

        normal = norm("self_attn_layer_norm", hidden)
        query, key, value = (
            linear(f"self_attn.{name}", normal).reshape(-1, heads, dim // heads).transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        scores = query @ key.transpose(1, 2) / (dim // heads) ** 0.5
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
        mixed = (weights @ value).transpose(0, 1).reshape(-1, dim)
        hidden = hidden + linear("self_attn.out_proj", mixed)
        inner = F.gelu(linear("fc1", norm("final_layer_norm", hidden)))
        hidden = hidden + linear("fc2", inner)
        if index + 1 == config["pooling_position"]:
            size = config["pooling_kernel_size"]
            groups = hidden.reshape(-1, size, dim)
            hidden = groups.mean(1) if config["pooling_type"] == "avg" else groups.amax(1)
            real, block = real[::size], None if block is None else block // size
    return torch.cdist(hidden, get["codebook.weight"]).argmin(dim=1)[None]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pooling_position": 1},
        {"pooling_type": "max"},
        {"quantize_causal_block_size": None},
        {"quantize_causal_block_size": None, "encoder_causal_convolution": False},
        {"encoder_causal_attention": True},
    ],
    ids=str,
)
def test_flags_mean_what_a_slow_reading_says(changes: dict[str, Any], tmp_path: Path) -> None:
    config = {**small_whisper.GLM, **changes}
    tensors = spread(config)
    folder = small_whisper.save(tmp_path / "glm", config, tensors)
    tokenizer = WhisperVQ.fit(iter(()), {"model": str(folder)}, seed=1)
    used = set()
    for length in (WINDOW, WINDOW - 900, 2 * BLOCK + 17, 700, WINDOW - 1):
        wave = speech(length, seed=length)
        codes = tokenizer.encode(wave[None])[0].codes
        assert torch.equal(codes, slow_codes(config, tensors, wave))
        used |= set(codes.flatten().tolist())
    assert len(used) > 25


# Checkpoints, whole and otherwise.


def test_shards_and_an_encoder_alone_give_the_same_units(checkpoint: Path, tmp_path: Path) -> None:
    expected = WhisperVQ.fit(iter(()), {"model": str(checkpoint)}, seed=1).fingerprint
    whole = spread(small_whisper.GLM)
    shards = small_whisper.save(tmp_path / "shards", small_whisper.GLM, whole, shards=3)
    assert WhisperVQ.fit(iter(()), {"model": str(shards)}, seed=1).fingerprint == expected
    prefix = "model.encoder."
    alone = {n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}
    encoder = small_whisper.save(tmp_path / "alone", small_whisper.GLM, alone)
    assert WhisperVQ.fit(iter(()), {"model": str(encoder)}, seed=1).fingerprint == expected


def test_layers_above_the_codebook_are_not_kept(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = WhisperVQ.fit(iter(()), {"model": str(checkpoint)}, seed=1)
    tokenizer.save(tmp_path / "part")
    from safetensors import safe_open

    with safe_open(tmp_path / "part" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "layers.2.fc1.weight" in names
    assert not [name for name in names if name.startswith("layers.3") or "decoder" in name]


def test_the_sha256_of_the_weights_is_checked(checkpoint: Path) -> None:
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    options = {"model": str(checkpoint), "sha256": digest[:20].upper()}
    WhisperVQ.fit(iter(()), options, seed=1)
    with pytest.raises(CheckpointError, match=rf"SHA-256 {digest[:16]}, expected 0123abcd"):
        WhisperVQ.fit(iter(()), {**options, "sha256": "0123abcd"}, seed=1)
    with pytest.raises(ConfigError, match="expected 8 to 64 hexadecimal digits, got 'secret'"):
        WhisperVQ.fit(iter(()), {**options, "sha256": "secret"}, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize_vocab_size": None}, "Whisper without a codebook gives no units"),
        ({"activation_function": "relu"}, "expected the activation_function 'gelu', got 'relu'"),
        ({"pooling_kernel_size": 3}, r"pooling \(3\) must divide max_frames"),
        ({"pooling_position": 4}, r"pooling_layer \(4\) must be within 1\.\.num_layers \(3\)"),
        ({"d_model": None}, "expected the configuration of a Whisper, got d_model None"),
        ({"d_model": 30}, r"num_heads \(4\) must divide model_dim \(30\)"),
        ({"quantize_position": 5}, "lacks the tensor layers.4"),
        ({"encoder_ffn_dim": 40}, r"fc1.weight is \[48, 32\], but its config.json says \[40, 32\]"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_checkpoint_of_another_kind_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = {**small_whisper.GLM, **changes}
    tensors = small_whisper.weights(small_whisper.GLM)
    folder = small_whisper.save(tmp_path / "other", config, tensors)
    with pytest.raises(CheckpointError, match=message):
        WhisperVQ.fit(iter(()), {"model": str(folder)}, seed=1)


def test_missing_and_truncated_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json: expected a folder"):
        WhisperVQ.fit(iter(()), {"model": str(tmp_path)}, seed=1)
    folder = small_whisper.save(tmp_path / "cut", small_whisper.GLM)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cannot be read .* download or save it again"):
        WhisperVQ.fit(iter(()), {"model": str(folder)}, seed=1)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\*\.safetensors"):
        WhisperVQ.fit(iter(()), {"model": str(folder)}, seed=1)
    (folder / "config.json").write_text("{", encoding="utf-8")
    weights.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        WhisperVQ.fit(iter(()), {"model": str(folder)}, seed=1)


def test_what_hears_the_end_from_the_beginning_comes_by_windows_only(tmp_path: Path) -> None:
    config = {**small_whisper.GLM, "quantize_causal_block_size": None}
    folder = small_whisper.save(tmp_path / "full", config)
    with pytest.raises(ConfigError, match="stream is 'block', but this encoder's attention"):
        WhisperVQ.fit(iter(()), {"model": str(folder), "stream": "block"}, seed=1)


# Training.

OPTIONS = {"labels": "characters", "num_units": 96, "quantize_after": 12, "block_s": 0.32}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return small_whisper.save(tmp_path / "plain", small_whisper.SIZES)


def test_training_lowers_the_loss_and_gives_a_tokenizer(plain: Path) -> None:
    options = {**OPTIONS, "model": str(plain), "stream": "block"}
    training = WhisperVQ.training(options, seed=1)
    tones = torch.sin(torch.arange(12_000) * torch.tensor([[0.05], [0.2], [0.6], [1.4]]))
    lengths = torch.tensor([12_000, 11_000, 9_000, 8_000])
    waves = 0.3 * tones * (torch.arange(12_000) < lengths[:, None])
    texts = ("one two", "three", "four", "six")
    optimizer = torch.optim.AdamW(
        [p for p in training.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0
    )
    losses = []
    for number in range(40):
        batch = SegmentBatch(waves=waves, lengths=lengths, number=number, texts=texts)
        loss, terms = training(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert terms["perplexity"] >= 1
    tokenizer = training.part()
    assert tokenizer.config.shape.attention == "block"
    assert tokenizer.config.shape.block == 16
    check_tokenizer(tokenizer, [speech(length) for length in (40_000, 5000, 1)])
    assert not tokenizer.codebook.requires_grad


def test_a_recording_longer_than_whisper_hears_is_refused(plain: Path) -> None:
    training = WhisperVQ.training({**OPTIONS, "model": str(plain)}, seed=1)
    batch = SegmentBatch(
        waves=torch.zeros(1, 40_000), lengths=torch.tensor([40_000]), number=0, texts=("a",)
    )
    with pytest.raises(
        InputError, match=r"recordings of at most 2 s, as Whisper hears, got 2\.5 s"
    ):
        training(batch)


def test_training_starts_from_a_whisper_alone(tmp_path: Path) -> None:
    config = {**small_whisper.SIZES, "d_model": "32"}
    folder = small_whisper.save(tmp_path / "other", config, {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="configuration of a Whisper, got d_model '32'"):
        WhisperVQ.training({**OPTIONS, "model": str(folder)}, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck_layer": 4}, "bottleneck_layer below 4"),
        ({"num_units": 1}, "num_units must be at least 2"),
        ({"blok_s": 1}, "did you mean 'tokenizer.options.block_s'"),
        ({"block_s": 31}, r"block_s within 0\.\.30 s"),
        ({"alphabet": "aa"}, "each character once"),
        ({"stream": "block", "block_s": 0.0}, "stream is 'block'"),
    ],
    ids=str,
)
def test_a_wrong_option_of_training_is_named(
    plain: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        WhisperVQ.training({**OPTIONS, "model": str(plain), **options}, seed=1)
