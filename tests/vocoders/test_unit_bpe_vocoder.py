"""Vocoder unit-bpe undoes the merges and sounds as the units themselves do, sample for sample."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import (
    CheckpointError,
    ConfigError,
    FingerprintError,
    InputError,
    PluginError,
)
from speechlm.plugins import load_vocoder
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_tokenizers.unit_bpe import UnitBPE
from speechlm_vocoders.centroid_mel import CentroidMel
from speechlm_vocoders.unit_bpe import UnitBPEVocoder

RATE = 16_000
BOTH = pytest.mark.parametrize("collapse", [False, True], ids=["frames", "collapsed"])


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    return [load_audio(clip.path, RATE) for clip in list(human_clips().values())[:30]]


@pytest.fixture(scope="module")
def tokenizers(
    waves: list[Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, UnitBPE]:
    folder = tmp_path_factory.mktemp("unit-bpe-vocoder") / "base"
    LogMelKMeans.fit(waves, {"num_units": 60, "iterations": 3}, seed=1).save(folder)
    options = {"base": str(folder), "vocab_size": 300, "span_s": 0.4}
    return {
        collapse: UnitBPE.fit(waves, {**options, "collapse": collapse}, seed=1)
        for collapse in (False, True)
    }


@pytest.fixture(scope="module")
def vocoders(tokenizers: dict[bool, UnitBPE]) -> dict[bool, UnitBPEVocoder]:
    return {
        collapse: UnitBPEVocoder.for_tokenizer(tokenizer)
        for collapse, tokenizer in tokenizers.items()
    }


def _units(tokenizer: UnitBPE, wave: Tensor) -> Units:
    return tokenizer.encode(wave[None])[0]


@BOTH
def test_it_keeps_every_promise_of_a_vocoder(
    vocoders: dict[bool, UnitBPEVocoder],
    tokenizers: dict[bool, UnitBPE],
    waves: list[Tensor],
    collapse: bool,
) -> None:
    units = [_units(tokenizers[collapse], wave) for wave in waves[:8]]
    assert len(torch.cat([one.codes for one in units], dim=1).unique()) > 50
    check_vocoder(vocoders[collapse], [units[0], units[1], replace_by_few(units[2])])


def replace_by_few(units: Units) -> Units:
    assert units.durations is not None
    return replace(units, codes=units.codes[:, :3], durations=units.durations[:3])


@BOTH
@pytest.mark.parametrize("tokens", [0, 1, 2, 7])
def test_few_tokens_stream_exactly_too(
    vocoders: dict[bool, UnitBPEVocoder],
    tokenizers: dict[bool, UnitBPE],
    collapse: bool,
    tokens: int,
) -> None:
    few = Units(
        codes=torch.arange(tokens)[None] + 80,
        frame_rate=tokenizers[collapse].frame_rate,
        fingerprint=tokenizers[collapse].fingerprint,
        variable_rate=True,
    )
    check_vocoder_stream(vocoders[collapse], few, chunk=2)


def test_it_sounds_as_the_units_themselves_do(
    vocoders: dict[bool, UnitBPEVocoder], tokenizers: dict[bool, UnitBPE], waves: list[Tensor]
) -> None:
    tokenizer = tokenizers[False]
    plain = CentroidMel.for_tokenizer(tokenizer.base)
    for wave in waves[:2]:
        expected = plain.decode([tokenizer.base.encode(wave[None])[0]])[0]
        units = _units(tokenizer, wave)
        assert torch.equal(vocoders[False].decode([units])[0], expected)
        # What an LM gives has no durations; the tokens know them.
        bare = replace(units, durations=None)
        assert torch.equal(vocoders[False].decode([bare])[0], expected)


def test_collapsed_tokens_last_as_long_as_they_are_told(
    vocoders: dict[bool, UnitBPEVocoder], tokenizers: dict[bool, UnitBPE], waves: list[Tensor]
) -> None:
    units = _units(tokenizers[True], waves[0])
    assert units.durations is not None
    hop = vocoders[True].hop_length
    assert len(vocoders[True].decode([units])[0]) == units.num_frames * hop
    slower = replace(units, durations=2 * units.durations)
    assert len(vocoders[True].decode([slower])[0]) == 2 * units.num_frames * hop


def test_it_holds_a_vocoder_that_was_trained_for_the_units(
    tokenizers: dict[bool, UnitBPE], waves: list[Tensor], tmp_path: Path
) -> None:
    tokenizer = tokenizers[False]
    trained = CentroidMel.for_tokenizer(tokenizer.base)
    vocoder = UnitBPEVocoder.for_tokenizer(tokenizer, trained)
    assert vocoder.base is trained
    trained.save(tmp_path / "trained")
    by_options = UnitBPEVocoder.from_options(tokenizer, {"base": str(tmp_path / "trained")})
    assert by_options.fingerprint == vocoder.fingerprint
    with pytest.raises(ConfigError, match=r"did you mean 'vocoder\.options\.base'"):
        UnitBPEVocoder.from_options(tokenizer, {"bass": "anything"})
    with pytest.raises(ConfigError, match=r"vocoder\.options\.base"):
        UnitBPEVocoder.from_options(tokenizer, {})
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        UnitBPEVocoder.from_options(tokenizer, {"base": str(tmp_path / "nowhere")})
    other = LogMelKMeans.fit(waves[:9], {"num_units": 60, "iterations": 1}, seed=2)
    with pytest.raises(FingerprintError, match=r"vocoder that 'unit-bpe' is to hold was made for"):
        UnitBPEVocoder.for_tokenizer(tokenizer, CentroidMel.for_tokenizer(other))


def test_its_folder_needs_nothing_else(
    vocoders: dict[bool, UnitBPEVocoder],
    tokenizers: dict[bool, UnitBPE],
    waves: list[Tensor],
    tmp_path: Path,
) -> None:
    vocoders[True].save(tmp_path / "there")
    shutil.move(tmp_path / "there", tmp_path / "elsewhere")
    loaded = load_vocoder(tmp_path / "elsewhere")
    assert loaded.fingerprint == vocoders[True].fingerprint
    assert loaded.tokenizer_fingerprint == tokenizers[True].fingerprint
    units = [_units(tokenizers[True], waves[0])]
    assert torch.equal(loaded.decode(units)[0], vocoders[True].decode(units)[0])


def test_auto_finds_it_and_the_vocoder_inside(tokenizers: dict[bool, UnitBPE]) -> None:
    vocoder = load_vocoder("auto", tokenizers[False])
    assert isinstance(vocoder, UnitBPEVocoder)
    assert isinstance(vocoder.base, CentroidMel)


def test_tokens_of_another_tokenizer_are_refused(
    vocoders: dict[bool, UnitBPEVocoder], tokenizers: dict[bool, UnitBPE], waves: list[Tensor]
) -> None:
    with pytest.raises(FingerprintError, match=r"made for 'unit-bpe-.*' was given"):
        vocoders[False].decode([_units(tokenizers[True], waves[0])])
    with pytest.raises(FingerprintError, match="'logmel-kmeans-"):
        vocoders[False].decode([tokenizers[False].base.encode(waves[0][None])[0]])


def test_what_it_cannot_render_is_refused(
    vocoders: dict[bool, UnitBPEVocoder], tokenizers: dict[bool, UnitBPE], waves: list[Tensor]
) -> None:
    size = tokenizers[False].vocab_size
    with pytest.raises(InputError, match=rf"expected tokens within 0\.\.{size - 1}, got"):
        vocoders[False].stream().push(torch.tensor([[0, size]]))
    with pytest.raises(InputError, match=r"tokens \[1, m\] of one codebook, got \[2, 3\]"):
        vocoders[False].stream().push(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="has one voice"):
        vocoders[False].stream(speaker="someone")
    with pytest.raises(PluginError, match="undoes the merges of tokenizer 'unit-bpe', got"):
        UnitBPEVocoder.for_tokenizer(tokenizers[False].base)
