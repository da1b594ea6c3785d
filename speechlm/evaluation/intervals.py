"""How sure a measured figure is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion; good for few trials and near 0 or 1.

    Args:
        successes: 0 to ``trials``.
        trials: At least 0; without any, nothing is known: (0, 1).
        confidence: Probability that such intervals hold the truth.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} and {trials}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # Rounding must not push the ends past what they are at 0 and at all successes.
    low = 0.0 if successes == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if successes == trials else min(1.0, (centre + spread) / scale)
    return low, high


def ratio_interval(rows: Sequence[Sequence[float]], *, seed: int) -> tuple[float, float]:
    """The bootstrap interval of what the first column adds up to by what the second does."""
    return bootstrap_interval(rows, lambda sums: sums[:, 0] / sums[:, 1], seed=seed)


def mean_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """The bootstrap interval of a mean."""
    return ratio_interval([(value, 1.0) for value in values], seed=seed)


def bootstrap_interval(
    values: Sequence[Sequence[float]],
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 1000,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of independent rows.

    Args:
        values: One row a recording, all of one width [N, C], N >= 1.
        statistic: The column sums of every resample, float64 [R, C], to its figure [R].
        seed: Same seed, same interval.

    Sources:
        Efron 1979, "Bootstrap methods: another look at the jackknife"; Hesterberg 2015, "What
        teachers should know about the bootstrap", arXiv:1411.5279, for the expanded percentiles:
        those of few rows alone give intervals that are too narrow.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"expected rows [N, C], N >= 1, got {list(rows.shape)}")
    draws = np.random.default_rng(seed).integers(len(rows), size=(num_resamples, len(rows)))
    figures = statistic(rows[draws].sum(axis=1))
    tail = _expanded_tail((1 - confidence) / 2, len(rows))
    low, high = np.quantile(figures, [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(tail: float, num_rows: int) -> float:
    """The share of resamples to leave out at either end, so that ``num_rows`` hold the truth."""
    if num_rows < 2:
        return tail
    freedom = num_rows - 1
    z = NormalDist().inv_cdf(1 - tail)
    # Student's quantile, by the first terms of its expansion in 1 / freedom.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * math.sqrt(num_rows / freedom))
