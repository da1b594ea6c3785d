"""One utterance from text to file: spoken, trimmed, heard in some room, at one rate."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechlm.data.espeak import Voice, speak

SAMPLE_RATE = 16_000
"""Of everything that is made, Hz."""
TRIM_DB = -45.0
"""Quieter than this below the peak counts as silence at the ends."""
MARGIN_S = 0.05
"""Kept around the speech, seconds."""
PEAK = 0.7
"""Of every plain rendition, of full scale."""


Spans = list[tuple[str, float, float]]
"""What is said when: each with its start and end in the file, seconds."""


def render(text: str, voice: Voice, room_seed: str | None, path: Path) -> tuple[Spans, Spans]:
    """Speak a text into a FLAC file, 16 kHz, one channel, 16 bits.

    Args:
        room_seed: Draws the room, microphone and noise; None for the voice as it is.
        path: Not written atomically: give a file of a folder aside.

    Returns:
        Its words and its phones; empty if the engine tells none.
    """
    wave, words, phones = say(text, voice, room_seed)
    # Through memory: closing a file of its own, libsndfile waits for the disk each time.
    encoded = io.BytesIO()
    soundfile.write(encoded, wave.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path.write_bytes(encoded.getbuffer())
    return words, phones


def say(text: str, voice: Voice, room_seed: str | None) -> tuple[Tensor, Spans, Spans]:
    """Speak a text: float32 [T] at 16 kHz, its words and its phones, as :func:`render` has them."""
    speech = speak(text, voice)
    start, end = trim(speech.samples, speech.sample_rate)
    # torch.tensor copies into aligned memory: sums then run in one order on every run.
    wave = hear(torch.tensor(speech.samples[start:end]), speech.sample_rate, room_seed)
    start_s, end_s = start / speech.sample_rate, end / speech.sample_rate

    def inside(spans: Sequence[tuple[str, float, float]]) -> Spans:
        def place(time_s: float) -> float:
            return round(min(max(time_s, start_s), end_s) - start_s, 3)

        return [(name, place(begin), place(end)) for name, begin, end in spans]

    return wave, inside(speech.words), inside(speech.phones)


def trim(samples: NDArray[np.float32], sample_rate: int) -> tuple[int, int]:
    """Where speech begins and ends, float32 [T], with a margin of :data:`MARGIN_S`."""
    level = np.abs(samples)
    loud = np.flatnonzero(level >= level.max() * 10 ** (TRIM_DB / 20))
    margin = round(MARGIN_S * sample_rate)
    return max(0, int(loud[0]) - margin), min(len(samples), int(loud[-1]) + 1 + margin)


def hear(wave: Tensor, rate: int, room_seed: str | None) -> Tensor:
    """A wave as some microphone in some room hears it.

    A short reverberation in half of the cases, a tilt of the spectrum of up to 6 dB a decade,
    noise 25 to 45 dB below the speech and a gain of -12 to 0 dB, all drawn by the seed.

    Args:
        wave: float32 [T] at ``rate`` Hz.
        rate: Any rate, Hz.
        room_seed: None for no room, noise or gain: the peak is :data:`PEAK`.

    Returns:
        float32 [T'], as long, at 16 kHz; a room's tail beyond it is cut off.
    """
    # Resampling, room and tilt are all products of spectra: one transform there and one back,
    # over a whole number of periods of both rates that leaves room for the tail.
    period = math.gcd(rate, SAMPLE_RATE)
    tail_s = 0.1
    num_periods = math.ceil((wave.shape[0] / rate + tail_s) * period / 8) * 8
    size = num_periods * SAMPLE_RATE // period
    spectrum = torch.fft.rfft(wave, num_periods * rate // period)
    num_bins = size // 2 + 1
    spectrum = torch.nn.functional.pad(spectrum, (0, max(0, num_bins - spectrum.shape[0])))
    spectrum = spectrum[:num_bins]
    num_samples = round(wave.shape[0] * SAMPLE_RATE / rate)
    if room_seed is None:
        wave = torch.fft.irfft(spectrum, size)[:num_samples]
        return wave * (PEAK / wave.abs().max())

    seed = hashlib.sha256(room_seed.encode()).digest()[:8]
    draw = np.random.default_rng(int.from_bytes(seed, "little"))
    if draw.random() < 0.5:
        spectrum = spectrum * torch.fft.rfft(torch.tensor(_room(draw, tail_s)), size)
    tilt_db = draw.uniform(-6, 6)
    frequency_hz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE).clamp(min=100)
    spectrum = spectrum * (frequency_hz / 1000) ** (tilt_db / 20)
    wave = torch.fft.irfft(spectrum, size)[:num_samples]

    noise = torch.tensor(draw.standard_normal(num_samples, dtype=np.float32))
    noise_db, gain_db = draw.uniform(-45, -25), draw.uniform(-12, 0)
    wave = wave + noise * wave.square().mean().sqrt() * 10 ** (noise_db / 20)
    return wave * (PEAK / wave.abs().max()) * 10 ** (gain_db / 20)


def _room(draw: np.random.Generator, duration_s: float) -> NDArray[np.float32]:
    """An impulse response: the direct sound and, 5 ms later, a tail that decays."""
    room = np.zeros(round(duration_s * SAMPLE_RATE), dtype=np.float32)
    decay_s, strength = draw.uniform(0.01, 0.04), draw.uniform(0.1, 0.4)
    time_s = np.arange(80, room.size) / SAMPLE_RATE
    tail = draw.standard_normal(time_s.size) * np.exp(-time_s / decay_s)
    room[0] = 1.0
    room[80:] = strength * tail / np.linalg.norm(tail)
    return room
