"""Mel cepstra, and how far those of two recordings are apart, in dB.

``mcd13`` is the mel cepstral distortion over 13 cepstra *without* the zeroth, which is loudness:

    (10 / ln 10) sqrt(2 sum_d (c_d - c'_d)^2), d = 1 ... 13

averaged over the aligned frames in which the reference speaks. ``mcd13_c0`` has d = 0 in its sum
too, as VERSA and pymcd do, so it also measures level. Figures called MCD in papers differ by
cepstra, alignment and silence, often by several dB: compare none without its definition.

Cepstra here are the cosine transform of the log amplitudes of 80 mel bands, not those that WORLD
and SPTK fit to an envelope; scaled alike, so both are decibels of a smoothed spectrum.

Source:
    Kubichek 1993, "Mel-cepstral distance measure for objective speech quality assessment".
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SAMPLE_RATE = 16_000
HOP = 160
"""Samples between two frames: 10 ms."""
NUM_CEPSTRA = 13
"""Beside the zeroth."""
NUM_MELS = 80
RANGE_DB = 60.0
"""What is this far below a recording's loudest band is taken for that: no silence is deeper."""
ACTIVE_DB = 20.0
"""Frames down to so much below the mean power are speech, as in VERSA."""
_WINDOW, _FFT = 400, 1024


def mel_amplitudes(wave: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes of mel bands, and the power of each frame.

    Args:
        wave: float32 [T] at :data:`SAMPLE_RATE`.

    Returns:
        amplitudes: float64 [1 + T // HOP, 80].
        power: float64 [1 + T // HOP].
    """
    spectra = torch.stft(
        wave.double(),
        n_fft=_FFT,
        hop_length=HOP,
        win_length=_WINDOW,
        window=torch.hann_window(_WINDOW, dtype=torch.float64),
        center=True,
        pad_mode="constant",
        return_complex=True,
    ).abs()
    return (_filters().T @ spectra).T, spectra.square().sum(dim=0)


def cepstra(amplitudes: Tensor) -> npt.NDArray[np.float64]:
    """Cepstra of mel bands.

    Args:
        amplitudes: float64 [F, 80].

    Returns:
        float64 [F, 14] such that the logarithm of band n is about
        ``c[0] + sum_d c[d] cos(pi d (n + 1/2) / 80)``.
    """
    floor = amplitudes.max() * 10 ** (-RANGE_DB / 20)
    logs = amplitudes.clamp(min=float(floor)).log()
    orders = torch.arange(NUM_CEPSTRA + 1, dtype=torch.float64)
    bands = torch.arange(NUM_MELS, dtype=torch.float64) + 0.5
    cosines = (math.pi / NUM_MELS * bands[:, None] * orders).cos() * 2 / NUM_MELS
    cosines[:, 0] /= 2
    found: npt.NDArray[np.float64] = (logs @ cosines).numpy()
    return found


def active_frames(power: Tensor) -> npt.NDArray[np.bool_]:
    """Which frames are speech, by their power [F]."""
    found: npt.NDArray[np.bool_] = (power > power.mean() * 10 ** (-ACTIVE_DB / 10)).numpy()
    return found


def distortion(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """The mean over frames of ``(10 / ln 10) sqrt(2 sum_d diff^2)``, dB.

    Args:
        first: Cepstra of aligned frames, float64 [P, D], P >= 1.
        second: The same of the other.
    """
    squares = np.square(first - second).sum(axis=1)
    return float((10 / math.log(10) * np.sqrt(2 * squares)).mean())


@lru_cache(1)
def _filters() -> Tensor:
    import torchaudio.functional

    filters: Tensor = torchaudio.functional.melscale_fbanks(
        _FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, NUM_MELS, SAMPLE_RATE, "slaney", "slaney"
    )
    return filters.double()
