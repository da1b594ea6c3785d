"""DAC's units by windows are transformers' own, and a stream gives the very same."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import (
    encodec_folder,
    small_dac,
    small_encodec,
    speechlike,
    transformers_folder,
    unequal,
)
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.codec_loading import fold_weight_norm
from speechlm_tokenizers.dac import Dac

HOP = 40


@cache
def model() -> Any:
    return small_dac()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformers_folder(model(), tmp_path_factory.mktemp("dac"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Dac:
    return fit(folder)


def fit(path: Path, **options: Any) -> Dac:
    options = {"model": str(path), "num_codebooks": 3, "window_s": 0.1, **options}
    return Dac.fit([], options, seed=0)


def of_transformers(wave: Tensor) -> Tensor:
    """Codes of the whole in one piece, int64 [3, F]; its end is padded as their processor does."""
    wave = F.pad(wave, (0, -len(wave) % HOP))
    with torch.no_grad():
        codes: Tensor = model().encode(wave[None, None], n_quantizers=3).audio_codes[0]
    return codes


def test_it_keeps_every_promise_of_a_tokenizer(tokenizer: Dac) -> None:
    check_tokenizer(tokenizer, unequal(6000, 41, 1600, 1))


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 8000), chunk=st.integers(1, 8000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: Dac, samples: int, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, speechlike(samples), chunk)


@pytest.mark.parametrize("chunk", [1, 39, 40, 1601, 16_000])
def test_a_stream_equals_the_whole_cut_from_a_sample_to_a_second(
    tokenizer: Dac, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, speechlike(16_030), chunk)


@pytest.mark.parametrize("samples", [1, 39, 40, 1600, 8000, 8017])
def test_a_recording_of_one_window_has_transformers_units(folder: Path, samples: int) -> None:
    wave = speechlike(samples, seed=1)
    codes = fit(folder, window_s=0.5).encode(wave[None])[0].codes
    assert torch.equal(codes, of_transformers(wave))
    if samples >= 8000:
        assert min(row.unique().numel() for row in codes) > 50


def test_windows_have_the_units_of_the_whole(tokenizer: Dac) -> None:
    wave = speechlike(16_000, seed=2)
    assert tokenizer.config.window * HOP * 10 == 16_000
    assert torch.equal(tokenizer.encode(wave[None])[0].codes, of_transformers(wave))


@pytest.mark.parametrize("ratios", [(2, 4, 5), (2, 4, 8), (3, 2)])
def test_the_reach_of_a_window_is_that_of_the_convolutions(
    ratios: tuple[int, ...], tmp_path: Path
) -> None:
    """A gradient says which samples a frame is made of, to the sample."""
    small = small_dac(ratios)
    tokenizer = Dac.fit([], {"model": str(transformers_folder(small, tmp_path))}, seed=0)
    before, after = tokenizer.config.architecture.encoder_reach()
    hop, frame = tokenizer.hop_length, 40
    wave = torch.randn(1, 1, 80 * hop, requires_grad=True)
    small.encoder(wave)[..., frame].square().sum().backward()
    assert wave.grad is not None
    heard = wave.grad[0, 0].nonzero()
    assert int(heard.min()) // hop == frame - before
    assert int(heard.max()) // hop == frame + after


def test_codebooks_are_chosen_by_number_or_bandwidth(folder: Path, tokenizer: Dac) -> None:
    """A codebook of 7 bits at 400 Hz takes 2.8 kbps."""
    wave = speechlike(3000)[None]
    for options, count in (
        ({"num_codebooks": None}, 4),
        ({"num_codebooks": 1}, 1),
        ({"num_codebooks": None, "bandwidth_kbps": 6.0}, 2),
    ):
        other = fit(folder, **options)
        assert other.num_codebooks == count
        shared = min(count, 3)
        expected = tokenizer.encode(wave)[0].codes[:shared]
        assert torch.equal(other.encode(wave)[0].codes[:shared], expected)


def test_what_it_takes_of_other_codebooks_is_not_kept(folder: Path) -> None:
    one = fit(folder, num_codebooks=1)
    assert not any(name.startswith("quantizer.quantizers.1.") for name in one.tensors)
    assert one.unit_features.shape == (128, 4)


def test_weights_kept_as_magnitude_and_direction_are_the_same(
    folder: Path, tokenizer: Dac, tmp_path: Path
) -> None:
    normed = small_dac()
    normed.apply_weight_norm()
    other = fit(transformers_folder(normed, tmp_path / "normed"))
    wave = speechlike(3000)[None]
    assert torch.equal(other.encode(wave)[0].codes, tokenizer.encode(wave)[0].codes)
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in normed.state_dict().items()
    }
    folded = fold_weight_norm(old)
    assert folded.keys() == model().state_dict().keys()
    for name, tensor in model().state_dict().items():
        torch.testing.assert_close(folded[name], tensor)


def test_pickled_weights_are_read_too(tokenizer: Dac, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(model().state_dict(), tmp_path / "pytorch_model.bin")
    assert fit(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_checkpoint_must_have_the_sha256_that_was_given(folder: Path, tokenizer: Dac) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert fit(folder, sha256=digest.upper()).fingerprint == tokenizer.fingerprint
    with pytest.raises(
        CheckpointError, match=r"has the SHA-256 .* expected 00000000 \(.*sha256\): it is a"
    ):
        fit(folder, sha256="0" * 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codebooks": 5}, "num_codebooks: expected 1 to 4, which the model has, got 5"),
        ({"bandwidth_kbps": 6.0}, "expected num_codebooks or bandwidth_kbps, got both"),
        ({"window_s": 0.0}, "window_s must be more than 0, got 0.0"),
        ({"windows": 4}, "unknown key 'tokenizer.options.windows'; did you mean"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(folder, **options)


def test_what_is_no_dac_is_said_in_a_line(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def broken(name: str, changes: dict[str, Any], content: bytes = weights) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **changes}))
        (tmp_path / name / "model.safetensors").write_bytes(content)
        return tmp_path / name

    with pytest.raises(CheckpointError, match=r"holds no config\.json: expected a folder"):
        fit(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder here nor a model that the hub"):
        fit(Path("no-such/model"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .* again"):
        fit(broken("truncated", {}, weights[: len(weights) // 2]))
    with pytest.raises(CheckpointError, match=r"lacks the tensor quantizer\.quantizers\.4.* more"):
        fit(broken("more", {"n_codebooks": 5}))
    with pytest.raises(CheckpointError, match="which the architecture has no place for"):
        fit(broken("less", {"n_codebooks": 3}))
    with pytest.raises(CheckpointError, match=r"expected \[\d+.*\]: it is of another architecture"):
        fit(broken("wider", {"encoder_hidden_size": 8, "hidden_size": 64}))
    with pytest.raises(CheckpointError, match=r"no model can be built of the checkpoint's config"):
        fit(broken("odd", {"codebook_size": 100}))
    with pytest.raises(ConfigError, match=r"odd2/config\.json\.sample_rate: input should be"):
        fit(broken("odd2", {"sampling_rate": "fast"}))
    other = encodec_folder(small_encodec(), tmp_path / "encodec")
    with pytest.raises(CheckpointError, match="holds a model of type 'encodec', expected 'dac'"):
        fit(other)
    (tmp_path / "truncated" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        fit(tmp_path / "truncated")
