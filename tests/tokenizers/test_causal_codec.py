"""causal-codec keeps a tokenizer's promises, whatever its shape and however few its codebooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_causal_codec import SMALL, VARIANTS, human_waves, random_codec
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.causal_codec import CausalCodec


@pytest.fixture(scope="module")
def waves() -> tuple[Tensor, ...]:
    return human_waves(12)


@pytest.fixture(scope="module")
def codec() -> CausalCodec:
    return random_codec()


@pytest.fixture(scope="module")
def folder(codec: CausalCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "tokenizer"
    codec.save(folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_keeps_every_promise_of_a_tokenizer(variant: str, waves: tuple[Tensor, ...]) -> None:
    codec = random_codec(**VARIANTS[variant])
    codes = torch.cat([codec.encode(wave[None])[0].codes for wave in waves], dim=1)
    assert codes.unique().numel() > 50
    assert (torch.tensor([row.unique().numel() for row in codes]) > 30).all()
    check_tokenizer(codec, [waves[0][:9000], waves[1][:4001], waves[2][:321], waves[3][:1]])


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(0, 20_000), chunk=st.integers(1, 16_000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    codec: CausalCodec, waves: tuple[Tensor, ...], samples: int, chunk: int
) -> None:
    check_tokenizer_stream(codec, torch.cat(waves)[5000 : 5000 + samples], chunk)


@pytest.mark.parametrize("chunk", [1, 319, 320, 321, 1280, 16_000])
def test_a_stream_equals_the_whole_in_chunks_of_a_sample_to_a_second(
    codec: CausalCodec, waves: tuple[Tensor, ...], chunk: int
) -> None:
    check_tokenizer_stream(codec, torch.cat(waves)[:7777], chunk)


def test_no_unit_hears_what_comes_after_its_frame(
    codec: CausalCodec, waves: tuple[Tensor, ...]
) -> None:
    wave = torch.cat(waves)[:16_000]
    other = wave.clone()
    other[320 * 23 :] = torch.randn(16_000 - 320 * 23, generator=torch.Generator().manual_seed(0))
    one, two = (codec.encode(each[None])[0].codes for each in (wave, other))
    assert torch.equal(one[:, :23], two[:, :23])
    assert not torch.equal(one[:, 23:], two[:, 23:])


def test_units_hang_on_the_seed(codec: CausalCodec) -> None:
    assert random_codec(seed=0).fingerprint == codec.fingerprint
    assert random_codec(seed=1).fingerprint != codec.fingerprint


def test_like_units_have_like_features(codec: CausalCodec) -> None:
    features = codec.unit_features
    assert features.shape == (64, 8)
    assert torch.equal(features, codec.tensors["quantizers._parts.0.codebooks"][0])


@pytest.mark.parametrize("variant", ["rvq", "fsq", "split"])
@pytest.mark.parametrize("count", [1, 2])
def test_its_first_codebooks_can_be_used_alone(
    variant: str, count: int, waves: tuple[Tensor, ...], tmp_path: Path
) -> None:
    if variant == "split":
        codec = random_codec(semantic="split", teacher=_teacher(tmp_path, waves))
    else:
        codec = random_codec(**VARIANTS[variant])
    codec.save(tmp_path / "codec")
    options = {"model": str(tmp_path / "codec"), "num_codebooks": count}
    assert not CausalCodec.needs_corpus(options)
    fewer = CausalCodec.fit([], options, seed=1)
    assert fewer.num_codebooks == count
    assert fewer.fingerprint != codec.fingerprint
    whole, some = codec.encode(waves[0][None])[0], fewer.encode(waves[0][None])[0]
    assert torch.equal(whole.codes[:count], some.codes)
    check_tokenizer(fewer, [waves[0][:5000], waves[1][:3001]])


def test_taken_as_it_is_it_is_the_same(codec: CausalCodec, folder: Path) -> None:
    taken = CausalCodec.fit([], {"model": str(folder)}, seed=1)
    assert taken.fingerprint == codec.fingerprint
    sooner = CausalCodec.fit([], {"model": str(folder), "block_frames": 1}, seed=1)
    assert sooner.lookahead == 0
    assert sooner.fingerprint != codec.fingerprint


def test_blocks_of_another_size_change_few_units(
    codec: CausalCodec, folder: Path, waves: tuple[Tensor, ...]
) -> None:
    """Only ties may fall another way: the network is the same one."""
    other = CausalCodec.fit([], {"model": str(folder), "block_frames": 7}, seed=1)
    wave = torch.cat(waves)[None]
    one, two = (each.encode(wave)[0].codes for each in (codec, other))
    assert (one == two).double().mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"trained before it is used: run 'speechlm train train.part=tokenizer .*model=FOLDER"),
        ({"num_codebooks": 2}, r"trained before it is used"),
        ({"model": "FOLDER", "num_codebooks": 4}, "expected 1 to 3, which the model has, got 4"),
        ({"model": "FOLDER", "num_codebooks": 0}, "expected 1 to 3, which the model has, got 0"),
        ({"model": "FOLDER", "block_frames": 0}, "block_frames must be at least 1, got 0"),
        ({"model": "FOLDER", "dim": 3}, "unknown key 'tokenizer.options.dim'"),
    ],
)
def test_a_wrong_wish_is_named(options: dict[str, Any], message: str, folder: Path) -> None:
    options = {key: str(folder) if value == "FOLDER" else value for key, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        CausalCodec.fit([], options, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop_lenght": 1}, "did you mean 'tokenizer.options.hop_length'"),
        ({"spectral_hop": 150}, r"spectral_hop must divide .*hop_length \(320\), got 150"),
        ({"analysis_window": 100}, r"analysis_window must be at least spectral_hop \(160\)"),
        ({"synthesis_window": 650}, "at least 3 times spectral_hop .* a multiple of it, got 650"),
        ({"vocab_size": 1}, "vocab_size must be at least 2, got 1"),
        ({"num_codebooks": 0}, "num_codebooks must be at least 1, got 0"),
        ({"lookahead": 1}, "lookahead must be at least 2 where windows of 640 samples"),
        ({"gain_db": -1}, "gain_db and loss_floor must be at least 0, got -1 and"),
        ({"quantizer": "fsq"}, r"whose product is vocab_size \(64\), got \[4, 4, 4, 4\]"),
        ({"quantizer": "fsq", "fsq_values": (64, 1)}, "must be numbers from 2 on"),
        ({"quantizer": "lfq"}, "tokenizer.options.quantizer: input should be 'rvq' or 'fsq'"),
        ({"quantizer_dropout": 1.5}, r"quantizer_dropout must be within 0\.\.1, got 1\.5"),
        ({"semantic": "split"}, "got semantic 'split' and teacher none"),
        ({"teacher": "somewhere"}, "got semantic 'none' and teacher somewhere"),
        ({"adversarial_from": -1}, "adversarial_from must be at least 0, got -1"),
        (
            {"adversarial_from": 1, "discriminator_periods": (), "discriminator_scales": 0},
            "expected discriminators where adversarial_from is given",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CausalCodec.training({**SMALL, **options}, seed=1)


def test_a_folder_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        CausalCodec.fit([], {"model": str(tmp_path / "nowhere")}, seed=1)


def test_truncated_weights_are_refused(codec: CausalCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec")
    weights = tmp_path / "codec" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        CausalCodec.load(tmp_path / "codec")


def test_changed_options_are_refused(codec: CausalCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    saved = json.loads(config.read_text(encoding="utf-8"))
    saved["config"]["block_frames"] = 2
    config.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"was saved as .* but its content is"):
        CausalCodec.load(tmp_path / "codec")


def _teacher(folder: Path, waves: tuple[Tensor, ...]) -> str:
    from speechlm_tokenizers.logmel_kmeans import LogMelKMeans

    LogMelKMeans.fit(waves, {"num_units": 16, "iterations": 2}, seed=1).save(folder / "teacher")
    return str(folder / "teacher")
