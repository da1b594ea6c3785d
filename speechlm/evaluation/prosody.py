"""How lively a continuation is spoken, and whether it goes on in the manner of its prompt.

Speech is taken as a run of units, each with two numbers: how long it lasts and at what pitch.
Plain functions on such arrays; :func:`stretches` makes them of any sound by a tokenizer and a
pitch tracker, so that models are compared that have no such streams of their own.

Source:
    Kharitonov et al. 2021 (pGSLM), arXiv:2109.03264: the least error of several samples, standard
    deviation (expressiveness), correlation of prompt and continuation (consistency).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechlm.errors import InputError
from speechlm.units import collapse_repeats

Floats = npt.NDArray[np.float64]
HOP_S = 0.01
"""Between two measurements of pitch, s."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stretches:
    """Units of one piece of speech, repeats merged."""

    durations_s: Floats
    """How long each lasts, float64 [U]."""
    log_f0: Floats
    """Its mean pitch, natural logarithm of Hz, float64 [U]; NaN where none of it is voiced."""

    def __post_init__(self) -> None:
        if self.durations_s.shape != self.log_f0.shape or self.log_f0.ndim != 1:
            raise InputError(
                "expected durations and pitch of the same units, "
                f"got {list(self.durations_s.shape)} and {list(self.log_f0.shape)}"
            )


def stretches(codes: Tensor, frame_rate: float, log_f0: Tensor, voiced: Tensor) -> Stretches:
    """Merge frames of equal units, and take the mean pitch of each.

    Args:
        codes: Units of one stream, int64 [F].
        frame_rate: Frames a second.
        log_f0: At each :data:`HOP_S`, float [N].
        voiced: Where it was measured, bool [N].
    """
    _, lengths = collapse_repeats(codes[None])
    durations_s = lengths.double() / frame_rate
    times_s = torch.arange(len(log_f0)) * HOP_S
    unit = torch.searchsorted(durations_s.cumsum(0), times_s.double(), right=True)
    used = voiced & (unit < len(lengths))
    sums = torch.zeros(2, len(lengths), dtype=torch.float64)
    sums[0].index_add_(0, unit[used], log_f0[used].double())
    sums[1].index_add_(0, unit[used], torch.ones(int(used.sum()), dtype=torch.float64))
    return Stretches(durations_s=durations_s.numpy(), log_f0=(sums[0] / sums[1]).numpy())


def absolute_error(found: Floats, target: Floats) -> tuple[float, int]:
    """The sum of absolute differences place by place, and of how many places.

    Places count that both have, and where neither is NaN.

    Args:
        found: float64 [U].
        target: float64 [U'].
    """
    count = min(len(found), len(target))
    apart = np.abs(found[:count] - target[:count])
    known = ~np.isnan(apart)
    return float(apart[known].sum()), int(known.sum())


def least_error(samples: Sequence[Floats], target: Floats) -> tuple[float, int] | None:
    """:func:`absolute_error` of the sample whose mean error is least; None if none can be told.

    A continuation may go many ways; that one of several comes near what was said is what can be
    asked for.
    """
    errors = [absolute_error(sample, target) for sample in samples]
    known = [error for error in errors if error[1]]
    return min(known, key=lambda error: error[0] / error[1], default=None)


def moments(values: Floats) -> list[float]:
    """Sum, sum of squares and count of what is not NaN; sums of them belong to all values."""
    known = values[~np.isnan(values)]
    return [float(known.sum()), float(np.square(known).sum()), float(len(known))]


def deviations(sums: Floats) -> Floats:
    """Standard deviations of what :func:`moments` [R, 3] belong to, float64 [R]; NaN of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[:, :2] / sums[:, 2:]
        found: Floats = np.sqrt(np.maximum(0.0, means[:, 1] - np.square(means[:, 0])))
    return found


def pair_moments(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Sums of x, y, xx, yy, xy and the count of pairs of which both members are known."""
    known = np.array([pair for pair in pairs if not np.isnan(pair).any()]).reshape(-1, 2)
    x, y = known.T
    return [float(part.sum()) for part in (x, y, x * x, y * y, x * y, np.ones_like(x))]


def correlations(sums: Floats) -> Floats:
    """Pearson's of what :func:`pair_moments` [R, 6] belong to, float64 [R].

    NaN where there are fewer than two pairs, or one member of them is always the same.
    """
    x, y, xx, yy, xy, count = sums.T
    of_x, of_y = count * xx - x * x, count * yy - y * y
    # What rounding leaves of a variance of nothing is none.
    varies = (of_x > 1e-12 * count * xx) & (of_y > 1e-12 * count * yy)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(varies, (count * xy - x * y) / np.sqrt(of_x * of_y), np.nan)
    return np.clip(found, -1.0, 1.0)


def mean(values: Floats) -> float:
    """Of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
