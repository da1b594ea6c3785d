"""centroid-mel renders what the tokenizer heard, and streams it sample for sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import FingerprintError, InputError
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.centroid_mel import CentroidMel


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    clips = list(human_clips().values())[:12]
    return [load_audio(clip.path, 16_000) for clip in clips]


@pytest.fixture(scope="module")
def tokenizer(waves: list[Tensor]) -> LogMelKMeans:
    return LogMelKMeans.fit(waves, {"num_units": 200, "iterations": 10}, seed=1)


@pytest.fixture(scope="module")
def vocoder(tokenizer: LogMelKMeans) -> CentroidMel:
    return CentroidMel.for_tokenizer(tokenizer)


def _units(tokenizer: LogMelKMeans, wave: Tensor) -> Units:
    return tokenizer.encode(wave[None])[0]


def test_it_keeps_every_promise_of_a_vocoder(
    vocoder: CentroidMel, tokenizer: LogMelKMeans, waves: list[Tensor]
) -> None:
    check_vocoder(vocoder, [_units(tokenizer, wave) for wave in waves[:3]])


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_few_units_stream_exactly_too(
    vocoder: CentroidMel, tokenizer: LogMelKMeans, waves: list[Tensor], frames: int, chunk: int
) -> None:
    units = _units(tokenizer, waves[0])
    few = replace(units, codes=units.codes[:, :frames])
    check_vocoder_stream(vocoder, few, chunk)


def test_what_it_renders_sounds_like_the_recording(
    vocoder: CentroidMel, tokenizer: LogMelKMeans, waves: list[Tensor]
) -> None:
    """Its log-mels follow the recording's in time and frequency, and no delay creeps in."""
    for wave in waves[:4]:
        rendered = vocoder.decode([_units(tokenizer, wave)])[0]
        assert _log_mel_correlation(wave, rendered) > 0.8
        assert _log_mel_correlation(wave, rendered.roll(8 * 320)) < 0.7


def test_merged_repeats_sound_the_same(
    vocoder: CentroidMel, tokenizer: LogMelKMeans, waves: list[Tensor]
) -> None:
    units = _units(tokenizer, waves[0])
    assert torch.equal(vocoder.decode([units.collapse()])[0], vocoder.decode([units])[0])


def test_units_of_another_tokenizer_are_refused_though_all_shapes_agree(
    vocoder: CentroidMel, waves: list[Tensor]
) -> None:
    other = LogMelKMeans.fit(waves, {"num_units": 200, "iterations": 10}, seed=2)
    with pytest.raises(FingerprintError, match=r"made for 'logmel-kmeans-.*' was given"):
        vocoder.decode([_units(other, waves[0])])


def test_units_out_of_range_are_refused(vocoder: CentroidMel) -> None:
    with pytest.raises(InputError, match=r"expected units within 0\.\.199, got 0\.\.200"):
        vocoder.stream().push(torch.tensor([[0, 200]]))


def test_a_voice_it_does_not_have_is_refused(
    vocoder: CentroidMel, tokenizer: LogMelKMeans, waves: list[Tensor]
) -> None:
    with pytest.raises(InputError, match="has one voice"):
        vocoder.decode([_units(tokenizer, waves[0])], speaker="someone")


def _log_mel_correlation(one: Tensor, other: Tensor) -> float:
    length = min(len(one), len(other))
    window = torch.hann_window(512)
    spectra = [
        torch.stft(wave[:length], 512, 160, window=window, return_complex=True)
        .abs()
        .unfold(0, 8, 8)
        .mean(dim=2)
        for wave in (one, other)
    ]
    flat = torch.stack([torch.log(spectrum + 1e-3).flatten() for spectrum in spectra])
    return float(torch.corrcoef(flat)[0, 1])
