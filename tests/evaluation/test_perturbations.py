"""What changes a recording does what its name says, and nothing more."""

from __future__ import annotations

import pytest
import torch

from speechlm.evaluation.perturbations import PERTURBATIONS, add_noise, raise_pitch, stretch

RATE = 16_000
TONE = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(RATE) / RATE)


def strongest_hz(wave: torch.Tensor) -> float:
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    return float(spectrum.argmax()) * RATE / len(wave)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_same_seed_gives_the_same_sound(name: str) -> None:
    change = PERTURBATIONS[name]
    changed = change(TONE, RATE, 3)
    assert torch.equal(changed, change(TONE, RATE, 3))
    assert changed.isfinite().all()
    assert 0.85 < len(changed) / len(TONE) < 1.15
    same = len(changed) == len(TONE)
    assert not (same and torch.allclose(changed, TONE, atol=1e-3))


def test_noise_is_as_strong_as_it_says() -> None:
    noise = add_noise(TONE, RATE, 1, snr_db=10.0) - TONE
    found = 10 * torch.log10(TONE.square().mean() / noise.square().mean())
    assert float(found) == pytest.approx(10, abs=0.2)


def test_stretching_keeps_the_pitch_and_raising_it_the_length() -> None:
    longer = stretch(TONE, RATE, 1, factor=1.1)
    assert len(longer) == round(1.1 * RATE)
    assert strongest_hz(longer) == pytest.approx(440, abs=4)
    higher = raise_pitch(TONE, RATE, 1, up=9, down=8)
    assert abs(len(higher) - RATE) <= 1
    assert strongest_hz(higher) == pytest.approx(440 * 9 / 8, abs=4)
