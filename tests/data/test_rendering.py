import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlm.audio import resample
from speechlm.data.espeak import Voice
from speechlm.data.rendering import PEAK, SAMPLE_RATE, hear, render, trim


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> torch.Tensor:
    time_s = torch.arange(int(rate * seconds)) / rate
    fade = torch.sin(math.pi * time_s / seconds)
    return 0.3 * fade * torch.sin(2 * math.pi * hz * time_s)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100])
def test_without_a_room_it_is_the_wave_at_16_khz(rate: int) -> None:
    wave = tone(rate)
    heard = hear(wave, rate, None)
    expected = resample(wave, rate, SAMPLE_RATE)
    expected = expected * (PEAK / expected.abs().max())
    assert abs(len(heard) - len(expected)) <= 1
    length = min(len(heard), len(expected))
    assert (heard[:length] - expected[:length]).abs().max() < 0.01


def test_nothing_above_8_khz_folds_back() -> None:
    wave = tone(44_100, hz=1000) + 0.5 * tone(44_100, hz=9000)
    spectrum = torch.fft.rfft(hear(wave, 44_100, None)).abs()
    folded = spectrum[round(7000 * 0.5)]  # where 9 kHz would land, half a second of audio
    assert folded < 1e-3 * spectrum.max()


@given(st.text())
def test_a_room_is_drawn_by_its_seed_alone(seed: str) -> None:
    wave = tone(22_050)
    heard = hear(wave, 22_050, seed)
    assert torch.equal(heard, hear(wave, 22_050, seed))
    assert not torch.equal(heard, hear(wave, 22_050, seed + "x"))
    assert len(heard) == 8000
    gain_db = 20 * math.log10(float(heard.abs().max()) / PEAK)
    assert -12.01 <= gain_db <= 0.01


def test_the_speech_stays_well_above_the_noise() -> None:
    wave = tone(SAMPLE_RATE)
    for seed in range(50):
        heard = hear(wave, SAMPLE_RATE, str(seed))
        share = torch.fft.rfft(heard).abs().square()
        # The tone and its fades lie within 40 Hz of 440 Hz, half a second of audio.
        assert share[200:241].sum() > 0.95 * share.sum()


@given(st.integers(0, 3000), st.integers(1, 3000), st.integers(0, 3000))
def test_trimming_keeps_all_speech_and_a_margin(before: int, speech: int, after: int) -> None:
    samples = np.concatenate([np.zeros(before), np.ones(speech), np.zeros(after)])
    start, end = trim(samples.astype(np.float32), 16_000)
    assert start == max(0, before - 800)
    assert end == min(len(samples), before + speech + 800)


def test_a_rendition_is_16_bit_flac_with_its_words_inside(tmp_path) -> None:
    pytest.importorskip("espeakng_loader")
    path = tmp_path / "a.flac"
    words, phones = render("What comes after seven?", Voice(), "seed", path)
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate) == ("FLAC", "PCM_16", 16_000)
    assert [word for word, _, _ in words] == ["What", "comes", "after", "seven"]
    for spans in (words, phones):
        times = [time for _, *each in spans for time in each]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= info.duration + 0.001
