"""mimi gives transformers' units, to the last, however a recording is cut or batched."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_mimi import HOP, save_as_moshi, see_only_the_window, small_mimi
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.mimi import Mimi
from speechlm_tokenizers.mimi_model import Encoder, State

FRAMES = 120
WINDOW = 12


@pytest.fixture(scope="module")
def reference() -> Any:
    return small_mimi()


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mimi")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Mimi:
    return Mimi.fit([], {"model": str(folder)}, seed=1)


@pytest.fixture(scope="module")
def wave() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    loudness = torch.rand(FRAMES, generator=generator).repeat_interleave(HOP)
    return loudness * torch.randn(FRAMES * HOP, generator=generator)


@torch.no_grad()
def units_of(reference: Any, wave: Tensor) -> Tensor:
    codes: Tensor = reference.encode(wave[None, None]).audio_codes[0]
    return codes


def test_it_gives_the_units_of_transformers(reference: Any, tokenizer: Mimi, wave: Tensor) -> None:
    codes = tokenizer.encode(wave[None])[0].codes
    assert torch.equal(codes, units_of(reference, wave))
    assert all(len(level.unique()) > 50 for level in codes), "too few units to tell"


def test_attention_is_as_configured(
    wave: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_only_the_window(monkeypatch)
    settings: dict[str, Any] = {"sliding_window": WINDOW, "norm_eps": 10.0, **rope(10.0)}
    reference = small_mimi(**settings)
    reference.save_pretrained(tmp_path)
    tokenizer = Mimi.fit([], {"model": str(tmp_path)}, seed=1)
    expected = units_of(reference, wave)
    assert torch.equal(tokenizer.encode(wave[None])[0].codes, expected)
    for changed in ({"sliding_window": WINDOW + 1}, {"norm_eps": 1e-5}, rope(1e4)):
        other = small_mimi(**{**settings, **changed})
        other.load_state_dict(reference.state_dict())
        assert not torch.equal(units_of(other, wave), expected), f"{changed} changes nothing"


def rope(theta: float) -> dict[str, Any]:
    """The base of rotary positions, as transformers 4 and 5 have it configured."""
    if version("transformers").startswith("4."):
        return {"rope_theta": theta}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def test_an_unfinished_frame_ends_in_silence(reference: Any, tokenizer: Mimi, wave: Tensor) -> None:
    for samples in (1, HOP - 1, HOP + 1, 7 * HOP + 100):
        filled = torch.cat([wave[:samples], torch.zeros(-samples % HOP)])
        codes = tokenizer.encode(wave[None, :samples])[0].codes
        assert torch.equal(codes, units_of(reference, filled))


def test_it_keeps_every_promise_of_a_tokenizer(tokenizer: Mimi, wave: Tensor) -> None:
    check_tokenizer(tokenizer, [wave[:9000], wave[3:4000], wave[:HOP], wave[100:101]])


@pytest.mark.parametrize("chunk", [1, HOP - 1, HOP, HOP + 1, 24_000])
def test_a_stream_equals_the_whole(tokenizer: Mimi, wave: Tensor, chunk: int) -> None:
    check_tokenizer_stream(tokenizer, wave[: max(9000, chunk + 1000)], chunk)


@settings(max_examples=15, deadline=None)
@given(begin=st.integers(0, 99), samples=st.integers(1, 5 * HOP), chunk=st.integers(1, 3 * HOP))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: Mimi, wave: Tensor, begin: int, samples: int, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, wave[begin : begin + samples], chunk)


def test_blocks_of_frames_keep_every_promise_too(
    folder: Path, tokenizer: Mimi, wave: Tensor
) -> None:
    in_blocks = Mimi.fit([], {"model": str(folder), "block": 5}, seed=1)
    assert in_blocks.lookahead == 4 * HOP
    check_tokenizer(in_blocks, [wave[: 12 * HOP + 1], wave[3:2000], wave[:1]])
    codes = in_blocks.encode(wave[None])[0].codes
    # Not to the bit: products of other shapes may round otherwise.
    assert (codes == tokenizer.encode(wave[None])[0].codes).double().mean() > 0.99
    assert in_blocks.fingerprint != tokenizer.fingerprint


def test_a_stream_remembers_a_bounded_past(tokenizer: Mimi, wave: Tensor) -> None:
    architecture = replace(tokenizer.config.architecture, window=WINDOW)
    encoder, state = Encoder(tokenizer.tensors, architecture, 1), State()
    sizes = set()
    for frame in wave.split(HOP):
        encoder.encode(frame, state)
        assert state.keys is not None
        sizes.add(state.keys.numel() + sum(rows.numel() for rows in state.rows.values()))
    assert len(sizes) == 1


def test_fewer_codebooks_are_the_first_ones(folder: Path, tokenizer: Mimi, wave: Tensor) -> None:
    every = tokenizer.encode(wave[None])[0].codes
    for count in (1, 3):
        few = Mimi.fit([], {"model": str(folder), "num_codebooks": count}, seed=1)
        assert few.num_codebooks == count
        assert torch.equal(few.encode(wave[None])[0].codes, every[:count])
        assert few.fingerprint != tokenizer.fingerprint


def test_moshis_own_file_is_the_same_tokenizer(tmp_path: Path, wave: Tensor) -> None:
    reference = small_mimi(num_residual_layers=1)
    reference.save_pretrained(tmp_path)
    one = Mimi.fit([], {"model": str(tmp_path)}, seed=1)
    path = save_as_moshi(tmp_path, tmp_path / "tokenizer-0123-checkpoint1.safetensors")
    other = Mimi.fit([], {"model": str(path)}, seed=1)
    assert other.config == one.config
    assert other.fingerprint == one.fingerprint
    assert torch.equal(other.encode(wave[None])[0].codes, units_of(reference, wave))


def test_it_needs_no_corpus_and_names_its_vocoder(tokenizer: Mimi) -> None:
    assert not Mimi.needs_corpus({})
    assert Mimi.default_vocoder == "mimi"
    assert tokenizer.frame_rate == 75


def test_a_sha256_is_compared(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    Mimi.fit([], {"model": str(folder), "sha256": digest[:16]}, seed=1)
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .* expected 0000000000000000"):
        Mimi.fit([], {"model": str(folder), "sha256": "0" * 16}, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codebooks": 0}, "num_codebooks must be at least 1, got 0"),
        ({"num_codebooks": 9}, r"num_codebooks: .* has 1\.\.8, got 9"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"codebooks": 4}, "unknown key 'tokenizer.options.codebooks'; did you mean"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mimi.fit([], {"model": str(folder), **options}, seed=1)


@pytest.mark.parametrize(
    "model", ["nobody/has-this", "nobody/has-this/tokenizer.safetensors", "no/such/folder"]
)
def test_a_missing_checkpoint_is_named(model: str) -> None:
    with pytest.raises(CheckpointError, match=model):
        Mimi.fit([], {"model": model}, seed=1)


def test_a_truncated_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    content = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        Mimi.fit([], {"model": str(tmp_path)}, seed=1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "encodec", "a model of type 'encodec', expected 'mimi'"),
        ("use_causal_conv", False, "use_causal_conv False, expected True"),
        ("upsample_groups", 1, "upsample_groups 1, expected 32"),
        ("frame_rate", 12.5, r"frame_rate 12\.5, expected 75"),
        ("num_hidden_layers", 3, r"lacks the tensor encoder_transformer\.layers\.2\."),
        ("num_hidden_layers", 1, r"holds the tensor \w+_transformer\.layers\.1\."),
        ("num_quantizers", 9, r"lacks the tensor quantizer\.acoustic.*\.7\."),
        ("upsampling_ratios", [8, 5, 5], r"encoder\.layers\.4\.conv\.weight is .*expected"),
        ("num_attention_heads", 32, "has num_key_value_heads 8, expected 32"),
    ],
)
def test_another_architecture_is_refused(
    folder: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Mimi.fit([], {"model": str(tmp_path)}, seed=1)


def test_a_file_that_is_no_mimi_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="holds no decoder of Mimi"):
        Mimi.fit([], {"model": str(path)}, seed=1)
    tensors = load_file(save_as_moshi(folder, path))
    del tensors["encoder.model.0.conv.conv.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="lacks the tensor encoder"):
        Mimi.fit([], {"model": str(path)}, seed=1)


def test_changed_weights_are_refused(tokenizer: Mimi, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["quantizer.codebooks"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"was saved as .* but its content is"):
        Mimi.load(tmp_path)
