"""How sure distances and quantiles are when values come in groups, such as pauses in dialogues.

Values of one dialogue are alike, so whole dialogues are drawn again, with all their values.

Source:
    Efron 1979, "Bootstrap methods: another look at the jackknife", over clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 1000

Groups = Sequence[Sequence[float]]
"""The values of each dialogue; some may have none."""


def wasserstein_interval(
    first: Groups, second: Groups, *, paired: bool, seed: int
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of :func:`speechlm.evaluation.interaction.turns.wasserstein`.

    Args:
        first: Values by dialogue.
        second: The same of the others.
        paired: Whether both have the same dialogues in the same order: then the same ones are
            drawn of both, and two equal sides are 0 apart in every draw.
        seed: Same seed, same interval.

    Returns:
        None where no draw has values on both sides.
    """
    values = np.concatenate([_flat(first), _flat(second)])
    order = np.argsort(values, kind="stable")
    steps = np.diff(values[order])
    of_first = np.arange(len(values)) < len(_flat(first))
    groups = np.concatenate([_groups(first), _groups(second)])
    found = []
    draws = [_draws(len(first), seed), _draws(len(second), seed if paired else seed + 1)]
    for mine, theirs in zip(*draws, strict=True):
        weights = np.where(
            of_first,
            mine[np.minimum(groups, len(mine) - 1)],
            theirs[np.minimum(groups, len(theirs) - 1)],
        )[order]
        # Whole numbers until the division: what is equal stays equal to the last bit.
        below_first = np.cumsum(np.where(of_first[order], weights, 0))
        below_second = np.cumsum(np.where(of_first[order], 0, weights))
        if len(values) and below_first[-1] and below_second[-1]:
            apart = below_first / below_first[-1] - below_second / below_second[-1]
            found.append(float(np.sum(np.abs(apart[:-1]) * steps)))
    return _percentiles(found)


def quantile_interval(groups: Groups, share: float, *, seed: int) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of what a ``share`` of all values is below; None without any."""
    values, owners = _flat(groups), _groups(groups)
    found = []
    for drawn in _draws(len(groups), seed):
        some = np.repeat(values, drawn[owners])
        if len(some):
            found.append(float(np.quantile(some, share)))
    return _percentiles(found)


def _draws(size: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each of ``size`` groups comes in a resample, int64 [size]."""
    draw = np.random.default_rng(seed)
    for _ in range(NUM_RESAMPLES):
        yield np.bincount(draw.integers(size, size=size), minlength=size)


def _flat(groups: Groups) -> npt.NDArray[np.float64]:
    return np.array([value for group in groups for value in group], dtype=np.float64)


def _groups(groups: Groups) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def _percentiles(found: Sequence[float]) -> tuple[float, float] | None:
    if not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
