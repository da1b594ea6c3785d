"""How far two pitches are apart, on frames that are aligned.

Figures in Hz and cents, and the correlation, are of frames that are voiced in both: an unvoiced
frame has no pitch, least of all one of 0 Hz.

Sources:
    Nakatani et al. 2008 (GPE, VDE); Chu and Alwan 2009 (FFE), as Polyak et al. 2021 use them for
    resynthesis from units, arXiv:2104.00355.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

GROSS = 0.2
"""A pitch that is off by more than this part of the reference's is a gross error."""


def track_hz(wave: Tensor, sample_rate: int, hop: int) -> npt.NDArray[np.float64]:
    """The pitch at each multiple of ``hop``, Hz, float64 [1 + T // hop]; 0 where unvoiced.

    Args:
        wave: float32 [T].
        sample_rate: Hz.
        hop: Samples.
    """
    from speechlm_vocoders.pitch import track_pitch

    log_pitch, voiced = track_pitch(wave[None], sample_rate, hop)
    found: npt.NDArray[np.float64] = (log_pitch.double().exp() * voiced)[0].numpy()
    return found


def pitch_figures(
    reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]
) -> dict[str, tuple[float, float]]:
    """Sums and counts of what differs.

    Args:
        reference: Hz of aligned frames, 0 where unvoiced, float64 [P], P >= 1.
        other: The same of the other recording.

    Returns:
        ``vde``: percent of all frames of which one is voiced and the other is not.
        ``gpe``: percent of frames voiced in both whose pitch is off by more than 20 %.
        ``ffe``: percent of all frames that are either.
        ``f0_rmse_hz``, ``f0_rmse_cents``: a recording's root mean square, of frames voiced in
        both; ``f0_corr``: Pearson's, of the same. What frames do not tell is left out: all but
        the first and third where none is voiced in both, the last where a pitch is constant.
    """
    both = (reference > 0) & (other > 0)
    mismatched = int(((reference > 0) != (other > 0)).sum())
    first, second = reference[both], other[both]
    gross = int((np.abs(second / first - 1) > GROSS).sum())
    total = float(len(reference))
    figures = {
        "vde": (100.0 * mismatched, total),
        "ffe": (100.0 * (mismatched + gross), total),
    }
    if not len(first):
        return figures
    figures["gpe"] = (100.0 * gross, float(len(first)))
    cents = 1200 * np.log2(second / first)
    figures["f0_rmse_hz"] = (float(np.sqrt(np.square(second - first).mean())), 1.0)
    figures["f0_rmse_cents"] = (float(np.sqrt(np.square(cents).mean())), 1.0)
    if np.ptp(first) > 0 and np.ptp(second) > 0:
        figures["f0_corr"] = (float(np.corrcoef(first, second)[0, 1]), 1.0)
    return figures
