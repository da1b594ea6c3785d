"""The pitch that vocoders are trained on: right where there is one, and bridged between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechlm_vocoders.pitch import track_pitch

RATE, HOP = 16_000, 160


def _tone(hertz: float, seconds: float) -> Tensor:
    """Ten harmonics, each weaker than the one before, float32 [T]."""
    turns = torch.arange(round(seconds * RATE)) * hertz / RATE
    return sum((torch.cos(2 * torch.pi * k * turns + k) / k for k in range(1, 11)), torch.zeros(1))


@pytest.mark.parametrize("hertz", [75.0, 140.0, 410.0])
def test_the_pitch_of_a_tone_amid_silence_is_found(hertz: float) -> None:
    generator = torch.Generator().manual_seed(0)
    wave = 0.003 * torch.randn(RATE, generator=generator)
    wave[4000:12_000] += _tone(hertz, 0.5)
    pitch, voiced = track_pitch(torch.stack([wave, torch.zeros(RATE)]), RATE, HOP)
    assert pitch.shape == voiced.shape == (2, 101)
    assert voiced[0, 27:74].all()
    assert not voiced[0, :22].any()
    assert not voiced[0, 79:].any()
    first = int(voiced[0].nonzero()[0])
    assert (pitch[0, :first] == pitch[0, first]).all()
    assert (pitch[0, 30:70].exp() / hertz - 1).abs().max() < 0.002
    assert not voiced[1].any()
    assert (pitch[1] == 0).all()


def test_noise_has_no_pitch() -> None:
    noise = torch.randn(4, 2 * RATE, generator=torch.Generator().manual_seed(0))
    assert track_pitch(noise, RATE, HOP)[1].float().mean() < 0.1


def test_the_pitch_goes_straight_through_what_is_unvoiced() -> None:
    wave = torch.cat([_tone(120, 0.8), torch.zeros(round(0.4 * RATE)), _tone(240, 0.8)])
    pitch, voiced = track_pitch(wave[None], RATE, HOP)
    assert not voiced[0, 85:115].any()
    assert pitch[0, 40].exp().item() == pytest.approx(120, rel=0.005)
    assert pitch[0, 160].exp().item() == pytest.approx(240, rel=0.005)
    steps = pitch[0, 85:115].diff()
    assert (steps > 0).all()
    assert steps.std() < 1e-4


def test_a_recording_is_measured_the_same_alone_and_in_a_batch() -> None:
    waves = torch.stack([_tone(100, 0.6), 0.01 * _tone(300, 0.6), torch.zeros(9600)])
    together = track_pitch(waves, RATE, HOP)
    for index in range(3):
        alone = track_pitch(waves[index : index + 1], RATE, HOP)
        torch.testing.assert_close(alone[0][0], together[0][index], atol=1e-4, rtol=0)
        assert torch.equal(alone[1][0], together[1][index])
