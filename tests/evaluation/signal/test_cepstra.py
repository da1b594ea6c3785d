from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.evaluation.signal.cepstra import (
    NUM_MELS,
    SAMPLE_RATE,
    active_frames,
    cepstra,
    distortion,
    mel_amplitudes,
)


@pytest.fixture(scope="module")
def wave() -> Tensor:
    return load_audio(human_clips()["april"].path, SAMPLE_RATE)


def test_loudness_is_in_the_zeroth_alone(wave: Tensor) -> None:
    frames, quieter = (cepstra(mel_amplitudes(each)[0]) for each in (wave, 0.5 * wave))
    assert distortion(frames[:, 1:], quieter[:, 1:]) == pytest.approx(0, abs=1e-9)
    # Six decibels by sqrt(2): the formula takes the zeroth for a cosine like the others.
    assert distortion(frames, quieter) == pytest.approx(20 * math.log10(2) / math.sqrt(2), rel=1e-9)


def test_a_ripple_of_three_decibels_is_three_decibels() -> None:
    """A cosine over the bands is one cepstrum, and the distortion is the ripple's rms."""
    bands = torch.arange(NUM_MELS, dtype=torch.float64) + 0.5
    ripple_db = 3 * math.sqrt(2) * (5 * math.pi / NUM_MELS * bands).cos()
    flat = torch.ones(4, NUM_MELS, dtype=torch.float64)
    found = distortion(cepstra(flat)[:, 1:], cepstra(flat * 10 ** (ripple_db / 20))[:, 1:])
    assert found == pytest.approx(3.0, rel=1e-9)


def test_cepstra_spell_out_the_log_spectrum() -> None:
    bands = torch.arange(NUM_MELS, dtype=torch.float64) + 0.5
    orders = torch.arange(14, dtype=torch.float64)
    chosen = 0.1 * torch.randn(3, 14, generator=torch.Generator().manual_seed(2)).double()
    logs = chosen @ (math.pi / NUM_MELS * orders[:, None] * bands).cos()
    assert cepstra(logs.exp()) == pytest.approx(chosen.numpy(), abs=1e-9)


def test_nothing_is_deeper_than_the_floor(wave: Tensor) -> None:
    silent = torch.cat([wave, torch.zeros(3_200)])
    faint = torch.cat([wave, 1e-7 * torch.randn(3_200)])
    first, second = (cepstra(mel_amplitudes(each)[0]) for each in (silent, faint))
    assert np.isfinite(first).all()
    assert first[-5:] == pytest.approx(second[-5:], abs=1e-6)


def test_silence_is_not_active(wave: Tensor) -> None:
    padded = torch.cat([torch.zeros(8_000), wave, torch.zeros(8_000)])
    active = active_frames(mel_amplitudes(padded)[1])
    assert not active[:48].any()
    assert not active[-48:].any()
    assert active.sum() > 20
