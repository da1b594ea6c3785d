"""Means over sets of different size and grading, each set counting once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.results import Result

NUM_RESAMPLES = 1000

SetShare = tuple[float, tuple[str, ...]]
"""Of a set: a factor, and its figures, of which the mean is taken."""


def mean_row(
    blank: Result, items: Sequence[Item], parts: Mapping[str, SetShare], seed: int
) -> Result:
    """The mean over sets of figures ``SET/FIGURE``, with its interval.

    The interval is a bootstrap over the items of each set. Items that lack one of a set's figures
    are left out; where a whole set has none, the row says so and has no value.
    """
    generator = np.random.default_rng(seed)
    total, draws, count = 0.0, np.zeros(NUM_RESAMPLES), 0
    lacking = []
    for name, (factor, ends) in parts.items():
        names = [f"{name}/{end}" for end in ends]
        found = [item for item in items if all(each in item.figures for each in names)]
        if not found:
            lacking.append(name)
            continue
        rows = np.array([[item.figures[each] for each in names] for item in found])
        whole = rows.sum(axis=0)
        total += factor * float((whole[:, 0] / whole[:, 1]).mean())
        picked = generator.integers(len(rows), size=(NUM_RESAMPLES, len(rows)))
        sums = rows[picked].sum(axis=1)
        draws += factor * (sums[..., 0] / sums[..., 1]).mean(axis=1)
        count += len(found)
    if lacking:
        return replace(
            blank,
            error=f"a mean of {len(parts)} sets; there is no figure of {', '.join(lacking)}",
        )
    low, high = np.quantile(draws / len(parts), [0.025, 0.975])
    value = total / len(parts)
    return replace(blank, value=value, ci95=(float(low), float(high)), n=count)
