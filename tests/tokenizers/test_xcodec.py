"""X-Codec's units by windows: transformers' own within one, and the same for a stream."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import small_dac, small_xcodec, speechlike, transformers_folder, unequal
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.xcodec import XCodec

SEMANTIC = ["hubert", "wavlm"]


@cache
def model(semantic: str) -> Any:
    return small_xcodec(semantic)


@cache
def tokenizer_of(semantic: str, folder: Path) -> XCodec:
    return fit(transformers_folder(model(semantic), folder / semantic))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xcodec")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> XCodec:
    return tokenizer_of("hubert", folder)


def fit(path: Path, **options: Any) -> XCodec:
    usual = {"num_codebooks": 3, "window_s": 0.2, "context_s": 0.1}
    return XCodec.fit([], {"model": str(path), **usual, **options}, seed=0)


def of_transformers(semantic: str, wave: Tensor) -> Tensor:
    """Codes of the whole in one piece, int64 [3, F]; its end is padded as their processor does."""
    wave = F.pad(wave, (0, -len(wave) % 320))
    with torch.no_grad():
        codes: Tensor = model(semantic).encode(wave[None, None]).audio_codes[0, :3]
    return codes


@pytest.mark.parametrize("semantic", SEMANTIC)
def test_it_keeps_every_promise_of_a_tokenizer(folder: Path, semantic: str) -> None:
    check_tokenizer(tokenizer_of(semantic, folder), unequal(16_000, 4801, 3200, 1))


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1, 16_000), chunk=st.integers(1, 16_000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: XCodec, samples: int, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, speechlike(samples), chunk)


@pytest.mark.parametrize("chunk", [1, 319, 4800, 16_000])
def test_a_stream_equals_the_whole_cut_from_a_sample_to_a_second(
    tokenizer: XCodec, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, speechlike(16_030), chunk)


@pytest.mark.parametrize("semantic", SEMANTIC)
@pytest.mark.parametrize("samples", [1, 320, 321, 48_000])
def test_a_recording_of_one_window_has_transformers_units(
    folder: Path, semantic: str, samples: int
) -> None:
    tokenizer_of(semantic, folder)
    wave = speechlike(samples, seed=1)
    codes = fit(folder / semantic, window_s=3.0).encode(wave[None])[0].codes
    assert torch.equal(codes, of_transformers(semantic, wave))
    if samples == 48_000:
        assert min(row.unique().numel() for row in codes) > 50


def test_context_makes_windows_more_like_the_whole(folder: Path, tokenizer: XCodec) -> None:
    wave = speechlike(32_000, seed=2)
    whole = of_transformers("hubert", wave)

    def agreement(context_s: float) -> float:
        other = fit(folder / "hubert", context_s=context_s)
        return float((other.encode(wave[None])[0].codes == whole).double().mean())

    assert agreement(0.0) < agreement(0.2) <= 1


def test_codebooks_are_chosen_by_number_or_bandwidth(folder: Path, tokenizer: XCodec) -> None:
    """A codebook of 7 bits at 50 Hz takes 0.35 kbps."""
    wave = speechlike(8000)[None]
    for options, count in (
        ({"num_codebooks": None}, 4),
        ({"num_codebooks": 1}, 1),
        ({"num_codebooks": None, "bandwidth_kbps": 1.0}, 2),
    ):
        other = fit(folder / "hubert", **options)
        assert other.num_codebooks == count
        shared = min(count, 3)
        expected = tokenizer.encode(wave)[0].codes[:shared]
        assert torch.equal(other.encode(wave)[0].codes[:shared], expected)


def test_what_training_alone_needs_is_not_kept(tokenizer: XCodec) -> None:
    names = tokenizer.tensors.keys()
    assert not any(name.startswith(("decoder_semantic", "fc1.")) for name in names)
    assert not any("embed_avg" in name or "masked_spec" in name for name in names)
    assert tokenizer.unit_features.shape == (128, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codebooks": 5}, "num_codebooks: expected 1 to 4, which the model has, got 5"),
        ({"num_codebooks": None, "bandwidth_kbps": 0.1}, r"bandwidth_kbps: expected 0\.35 to 1\.4"),
        ({"window_s": -1.0}, "window_s must be more than 0, got -1.0"),
        ({"context_s": -1.0}, "context_s must be at least 0, got -1.0"),
        ({"context": 4}, "unknown key 'tokenizer.options.context'; did you mean"),
    ],
)
def test_a_wrong_option_is_named(
    folder: Path, tokenizer: XCodec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(folder / "hubert", **options)


def test_what_is_no_xcodec_is_said_in_a_line(
    folder: Path, tokenizer: XCodec, tmp_path: Path
) -> None:
    config = json.loads((folder / "hubert" / "config.json").read_text())
    weights = (folder / "hubert" / "model.safetensors").read_bytes()

    def broken(name: str, changes: dict[str, Any], content: bytes = weights) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **changes}))
        (tmp_path / name / "model.safetensors").write_bytes(content)
        return tmp_path / name

    with pytest.raises(CheckpointError, match="has the SHA-256"):
        fit(folder / "hubert", sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .* again"):
        fit(broken("truncated", {}, weights[: len(weights) // 2]))
    with pytest.raises(CheckpointError, match=r"lacks the tensor quantizer\.quantizers\.4"):
        fit(broken("more", {"target_bandwidths": [2.0]}))
    semantic = {**config["semantic_model_config"], "hidden_size": 32}
    with pytest.raises(CheckpointError, match="it is of another architecture"):
        fit(broken("wider", {"semantic_model_config": semantic}))
    with pytest.raises(CheckpointError, match="a semantic model of type 'clap', expected hubert"):
        fit(broken("clap", {"semantic_model_config": {"model_type": "clap"}}))
    with pytest.raises(ConfigError, match=r"config\.json\.kernel_size: input should be"):
        fit(broken("odd", {"kernel_size": "big"}))
    other = transformers_folder(small_dac(), tmp_path / "dac")
    with pytest.raises(CheckpointError, match="holds a model of type 'dac', expected 'xcodec'"):
        fit(other)
