"""Vocoder prosody renders the units inside of tokenizer prosody, as their own vocoder does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.testing import check_vocoder
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_tokenizers.prosody import Prosody
from speechlm_vocoders.centroid_mel import CentroidMel
from speechlm_vocoders.prosody import ProsodyVocoder

RATE = 16_000


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    return [load_audio(clip.path, RATE) for clip in list(human_clips().values())[:8]]


@pytest.fixture(scope="module")
def tokenizer(waves: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Prosody:
    folder = tmp_path_factory.mktemp("prosody-vocoder") / "base"
    LogMelKMeans.fit(waves, {"num_units": 60, "iterations": 3}, seed=1).save(folder)
    return Prosody.fit(waves, {"base": str(folder)}, seed=1)


@pytest.fixture(scope="module")
def vocoder(tokenizer: Prosody) -> ProsodyVocoder:
    return ProsodyVocoder.for_tokenizer(tokenizer)


def _units(tokenizer: Prosody, wave: Tensor) -> Units:
    return tokenizer.encode(wave[None])[0]


def test_it_keeps_every_promise_of_a_vocoder(
    vocoder: ProsodyVocoder, tokenizer: Prosody, waves: list[Tensor]
) -> None:
    units = [_units(tokenizer, wave) for wave in waves[:4]]
    assert len(torch.cat([one.codes for one in units], dim=1).unique(dim=1)[0]) > 50
    check_vocoder(vocoder, units[:2])


def test_it_sounds_as_the_bases_units_do(
    vocoder: ProsodyVocoder, tokenizer: Prosody, waves: list[Tensor], tmp_path: Path
) -> None:
    plain = CentroidMel.for_tokenizer(tokenizer.base)
    expected = plain.decode([tokenizer.base.encode(waves[0][None])[0]])[0]
    units = _units(tokenizer, waves[0])
    assert torch.equal(vocoder.decode([units])[0], expected)
    plain.save(tmp_path / "trained")
    held = ProsodyVocoder.from_options(tokenizer, {"base": str(tmp_path / "trained")})
    assert held.fingerprint == vocoder.fingerprint
    assert torch.equal(vocoder.decode([units.collapse()])[0], expected)


def test_its_folder_needs_nothing_else(
    vocoder: ProsodyVocoder, tokenizer: Prosody, waves: list[Tensor], tmp_path: Path
) -> None:
    vocoder.save(tmp_path / "saved")
    loaded = ProsodyVocoder.load(tmp_path / "saved")
    assert loaded.fingerprint == vocoder.fingerprint
    assert loaded.tokenizer_fingerprint == tokenizer.fingerprint
    units = [_units(tokenizer, waves[1])]
    assert torch.equal(loaded.decode(units)[0], vocoder.decode(units)[0])


def test_what_it_cannot_render_is_refused(
    vocoder: ProsodyVocoder, tokenizer: Prosody, waves: list[Tensor]
) -> None:
    stream = vocoder.stream()
    with pytest.raises(InputError, match=r"expected units \[4, m\], got \[1, 5\]"):
        stream.push(torch.zeros(1, 5, dtype=torch.int64))
    wrong = torch.zeros(4, 5, dtype=torch.int64)
    wrong[3, 2] = 8
    with pytest.raises(InputError, match=r"within 0\.\.7, got 0\.\.8"):
        stream.push(wrong)
    with pytest.raises(FingerprintError, match=r"made for 'prosody-.*' was given"):
        vocoder.decode([tokenizer.base.encode(waves[0][None])[0]])
    with pytest.raises(PluginError, match="renders units of tokenizer 'prosody', got"):
        ProsodyVocoder.for_tokenizer(tokenizer.base)
    other = LogMelKMeans.fit(waves, {"num_units": 60, "iterations": 1}, seed=2)
    with pytest.raises(FingerprintError, match="vocoder that 'prosody' is to hold"):
        ProsodyVocoder.for_tokenizer(tokenizer, CentroidMel.for_tokenizer(other))
