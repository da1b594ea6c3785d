"""Pitch is found where it is, and windows on a grid hear what Praat hears in one piece."""

from __future__ import annotations

import sys

import parselmouth
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import PluginError
from speechlm_tokenizers.pitch import SILENCE, PitchTracker, Windows

RATE, HOP, BLOCK, CONTEXT = 16_000, 320, 25, 12


@pytest.fixture(scope="module")
def tracker() -> PitchTracker:
    return PitchTracker(
        sample_rate=RATE, hop_length=HOP, block=BLOCK, context=CONTEXT, floor_hz=60, ceiling_hz=500
    )


def hum(hz: Tensor | float, seconds: float) -> Tensor:
    """Ten harmonics of a pitch, float32 [T]."""
    frequency = torch.as_tensor(hz).double().expand(round(seconds * RATE))
    phase = (frequency / RATE).cumsum(0) * 2 * torch.pi
    parts = [(phase * harmonic).sin() / harmonic for harmonic in range(1, 11)]
    return (0.2 * torch.stack(parts).sum(dim=0)).float()


def track(tracker: PitchTracker, wave: Tensor) -> Tensor:
    """F0 of a whole recording by its windows, Hz, 0 where unvoiced."""
    windows = Windows(BLOCK * HOP, CONTEXT * HOP)
    loudest, blocks = 0.0, []
    for window in [*windows.push(wave), *windows.finish()]:
        loudest = max(loudest, float(window.abs().max()))
        log_f0, voiced = tracker.track(window, loudest)
        blocks.append(log_f0.exp().where(voiced, 0.0))
    return torch.cat(blocks)[: -(-len(wave) // HOP)]


@pytest.mark.parametrize("hz", [71.0, 110.0, 220.0, 437.0])
def test_a_steady_pitch_is_found(tracker: PitchTracker, hz: float) -> None:
    inner = track(tracker, hum(hz, 1.3))[3:-3]
    assert (inner / hz - 1).abs().max() < 0.005


def test_a_rising_pitch_is_followed_frame_for_frame(tracker: PitchTracker) -> None:
    hz = torch.linspace(100, 250, 2 * RATE)
    found = track(tracker, hum(hz, 2.0))
    middles = hz.reshape(-1, HOP).mean(dim=1)
    assert (found / middles - 1)[3:-3].abs().max() < 0.01


def test_silence_and_noise_have_no_pitch(tracker: PitchTracker) -> None:
    assert not track(tracker, torch.zeros(RATE)).any()
    noise = 0.1 * torch.randn(2 * RATE, generator=torch.Generator().manual_seed(0))
    assert (track(tracker, noise) > 0).double().mean() < 0.1


def test_a_faint_hum_after_speech_is_silence_but_not_by_itself(tracker: PitchTracker) -> None:
    """As Praat judges loudness by the loudest of all, windows do by the loudest so far."""
    faint = 0.1 * SILENCE * hum(150.0, 2.0)
    assert (track(tracker, faint)[10:-10] > 0).all()
    after = track(tracker, torch.cat([hum(150.0, 1.0), faint]))
    assert (after[:48] > 0).all()
    assert not after[52:].any()


def test_windows_hear_what_praat_hears_in_one_piece(tracker: PitchTracker) -> None:
    same_voicing, errors = [], []
    for clip in list(human_clips("prompts").values())[:4]:
        wave = load_audio(clip.path, RATE)
        found = track(tracker, wave)
        edge = CONTEXT * HOP
        padded = torch.nn.functional.pad(wave, (edge, edge - len(wave) % HOP + 1))
        whole = parselmouth.Sound(padded.double().numpy(), RATE).to_pitch_ac(
            time_step=0.01, pitch_floor=60, pitch_ceiling=500, silence_threshold=SILENCE
        )
        halves = (torch.arange(2 * len(found)) + 0.5) * HOP / 2 / RATE + edge / RATE
        values = torch.tensor([whole.get_value_at_time(float(at)) for at in halves])
        expected = values.log().reshape(-1, 2).nanmean(dim=1).exp()
        voiced = ~expected.isnan()
        same_voicing.append(voiced == (found > 0))
        both = voiced & (found > 0)
        errors.append((found[both] / expected[both] - 1).abs())
    assert torch.cat(same_voicing).double().mean() > 0.99
    assert (torch.cat(errors) < 0.01).double().mean() > 0.99


@given(
    samples=st.integers(0, 200),
    cuts=st.lists(st.integers(0, 70), max_size=8),
    block=st.integers(1, 40),
    context=st.integers(0, 30),
)
def test_windows_do_not_depend_on_the_cutting(
    samples: int, cuts: list[int], block: int, context: int
) -> None:
    wave = torch.arange(1.0, samples + 1)
    windows = Windows(block, context)
    found: list[Tensor] = []
    left = wave
    for cut in cuts:
        found += windows.push(left[:cut])
        left = left[cut:]
    found += [*windows.push(left), *windows.finish()]
    assert len(found) == -(-samples // block)
    padded = torch.nn.functional.pad(wave, (context, block + context))
    for number, window in enumerate(found):
        start = number * block
        assert torch.equal(window, padded[start : start + block + 2 * context])


def test_without_praat_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(PluginError, match=r"^pitch is measured by Praat.*speechlm\[prosody\]"):
        PitchTracker(
            sample_rate=RATE, hop_length=HOP, block=5, context=5, floor_hz=60, ceiling_hz=500
        )
