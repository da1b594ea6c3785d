"""How much listeners agree beyond chance."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt


def krippendorff_alpha(
    ratings: npt.ArrayLike, level: Literal["interval", "ordinal"]
) -> float | None:
    """Krippendorff's alpha: 1 for perfect agreement, 0 for what chance gives.

    Args:
        ratings: float64 [listeners, recordings]; NaN where a listener has not answered.
        level: ``interval`` weighs a disagreement by its square, ``ordinal`` by how many of all
            answers lie between.

    Returns:
        None if no recording has two answers, or if all answers are the same.

    Source:
        Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    table = np.asarray(ratings, dtype=np.float64)
    values = np.unique(table[~np.isnan(table)])
    # How often each recording got each value: [recordings, values].
    counts = (table.T[:, :, None] == values).sum(axis=1).astype(np.float64)
    counts = counts[counts.sum(axis=1) > 1]
    totals = counts.sum(axis=0)
    if (totals > 0).sum() < 2:
        return None
    weights = 1 / (counts.sum(axis=1) - 1)
    together = (counts * weights[:, None]).T @ counts - np.diag(counts.T @ weights)
    if level == "interval":
        apart = values[:, None] - values[None]
    else:
        # Answers up to the middle of each value: half of its own lie below.
        rank = totals.cumsum() - totals / 2
        apart = rank[:, None] - rank[None]
    expected = (np.outer(totals, totals) * apart**2).sum() / (totals.sum() - 1)
    return float(1 - (together * apart**2).sum() / expected)
