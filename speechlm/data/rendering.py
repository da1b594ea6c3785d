"""One utterance from text to file: spoken, resampled, trimmed, heard in some room."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from speechlm.audio import resample
from speechlm.data.espeak import Voice, speak

SAMPLE_RATE = 16_000
"""Of everything that is made, Hz."""
TRIM_DB = -45.0
"""Quieter than this below the peak counts as silence at the ends."""
MARGIN_S = 0.05
"""Kept around the speech, seconds."""
PEAK = 0.7
"""Of every plain rendition, of full scale."""


def render(
    text: str, voice: Voice, room_seed: str | None, path: Path
) -> list[tuple[str, float, float]]:
    """Speak a text into a file, 16 kHz, one channel, 16 bits.

    Args:
        room_seed: Draws the room, microphone and noise; None for the voice as it is.
        path: Its extension chooses the format. Not atomic: give a file of a folder aside.

    Returns:
        Each word with its start and end in the file, seconds; empty if the engine tells none.
    """
    speech = speak(text, voice)
    # torch.tensor copies into aligned memory: sums then run in one order on every run.
    wave = resample(torch.tensor(speech.samples), speech.sample_rate, SAMPLE_RATE)
    loud = torch.nonzero(wave.abs() > wave.abs().max() * 10 ** (TRIM_DB / 20)).squeeze(1)
    margin = round(MARGIN_S * SAMPLE_RATE)
    start = max(0, int(loud[0]) - margin)
    wave = wave[start : int(loud[-1]) + 1 + margin]
    wave = wave * (PEAK / wave.abs().max())
    if room_seed is not None:
        wave = hear(wave, room_seed)
    soundfile.write(path, wave.numpy(), SAMPLE_RATE, subtype="PCM_16")

    duration_s = wave.shape[0] / SAMPLE_RATE
    words = []
    for word, word_start_s, word_end_s in speech.words:
        inside = [
            round(min(max(t - start / SAMPLE_RATE, 0.0), duration_s), 3)
            for t in (word_start_s, word_end_s)
        ]
        words.append((word, inside[0], inside[1]))
    return words


def hear(wave: Tensor, seed: str) -> Tensor:
    """A wave as some microphone in some room hears it.

    A short reverberation in half of the cases, a tilt of the spectrum of up to 6 dB, noise
    25 to 45 dB below the speech and a gain of -12 to 0 dB, all drawn by ``seed``.

    Args:
        wave: float32 [T], 16 kHz.

    Returns:
        float32 [T]; a room's tail beyond it is cut off.
    """
    draw = np.random.default_rng(
        int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    )
    room = np.zeros(1600, dtype=np.float32)
    room[0] = 1.0
    if draw.random() < 0.5:
        decay_s = draw.uniform(0.01, 0.04)
        time_s = np.arange(80, room.size) / SAMPLE_RATE
        echoes = draw.standard_normal(time_s.size) * np.exp(-time_s / decay_s)
        room[80:] = draw.uniform(0.1, 0.4) * echoes / np.linalg.norm(echoes)
    tilt = draw.uniform(-0.5, 0.5)

    # Circular over a length that leaves room for the tail.
    size = 4096 * -(-(wave.shape[0] + room.size) // 4096)
    frequency_hz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE).clamp(min=100)
    spectrum = torch.fft.rfft(wave, size) * torch.fft.rfft(torch.tensor(room), size)
    spectrum = spectrum * (frequency_hz / 1000) ** (tilt / 2)
    wave = torch.fft.irfft(spectrum, size)[: wave.shape[0]]

    noise = torch.tensor(draw.standard_normal(wave.shape[0], dtype=np.float32))
    noise_db = draw.uniform(-45, -25)
    wave = wave + noise * wave.square().mean().sqrt() * 10 ** (noise_db / 20)
    gain_db = draw.uniform(-12, 0)
    return wave * (PEAK / wave.abs().max()) * 10 ** (gain_db / 20)
