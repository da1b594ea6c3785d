"""Waveforms in and out: any format soundfile reads, one channel, one rate, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from speechlm.errors import AudioError
from speechlm.files import write_aside

EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"})
"""What a folder of audio is searched for."""

MIN_DURATION_S = 0.02
"""Shorter recordings hold less than one frame of anything; they are refused."""
MAX_DURATION_S = 4 * 3600.0
"""Longer recordings are refused: at 16 kHz one would take close to 1 GB in memory."""
SILENCE_PEAK = 1e-4
"""A recording whose peak is below this (-80 dBFS) is called silent."""


def load_audio(path: Path, sample_rate: int) -> Tensor:
    """Read one recording, mix it down to one channel and resample it once.

    Returns:
        float32 [T] at ``sample_rate``.

    Raises:
        AudioError: Missing, empty, not audio, truncated to nothing, shorter than
            ``MIN_DURATION_S``, longer than ``MAX_DURATION_S``, NaN or infinite, or silent.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            if frames > MAX_DURATION_S * rate:
                raise AudioError(
                    f"{path}: {frames / rate / 3600:.1f} h long, at most "
                    f"{MAX_DURATION_S / 3600:.0f} h can be read; cut it into pieces"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path}: not audio that can be read ({error})") from error
    return prepare(torch.from_numpy(samples.T.copy()), rate, sample_rate, name=str(path))


def prepare(wave: Tensor, rate: int, sample_rate: int, *, name: str = "the recording") -> Tensor:
    """Check a waveform, mix it down to one channel and resample it.

    Args:
        wave: float [T] or [channels, T] at ``rate`` Hz, in -1..1.
        rate: Its rate, Hz.
        sample_rate: The rate that is wanted, Hz.
        name: What errors call it.

    Returns:
        float32 [T'] at ``sample_rate``, contiguous.

    Raises:
        AudioError: See :func:`load_audio`.
    """
    if wave.ndim not in (1, 2) or not wave.is_floating_point():
        raise AudioError(
            f"{name}: expected float samples [T] or [channels, T], "
            f"got {wave.dtype} {list(wave.shape)}"
        )
    if rate < 1:
        raise AudioError(f"{name}: expected a sample rate in Hz, got {rate}")
    wave = wave.float().mean(dim=0) if wave.ndim == 2 else wave.float()
    if wave.shape[0] < MIN_DURATION_S * rate:
        raise AudioError(
            f"{name}: {1000 * wave.shape[0] / rate:.0f} ms long, "
            f"expected at least {1000 * MIN_DURATION_S:.0f} ms"
        )
    if not torch.isfinite(wave).all():
        raise AudioError(f"{name}: holds NaN or infinite samples; export it again")
    if wave.abs().max() < SILENCE_PEAK:
        raise AudioError(f"{name}: silent (no sample above {SILENCE_PEAK:g} of full scale)")
    return resample(wave, rate, sample_rate).contiguous()


def resample(wave: Tensor, rate: int, sample_rate: int) -> Tensor:
    """Change the rate of float32 [..., T], without aliasing."""
    if rate == sample_rate:
        return wave
    import torchaudio.functional

    return torchaudio.functional.resample(wave, rate, sample_rate)


def save_audio(path: Path, wave: Tensor, sample_rate: int) -> None:
    """Write float32 [T] in the format of ``path``'s extension, whole or not at all."""
    samples = wave.detach().cpu().clamp(-1.0, 1.0).numpy().astype(np.float32)
    with write_aside(path) as aside:
        soundfile.write(aside, samples, sample_rate)
