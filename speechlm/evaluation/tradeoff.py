"""How well a model talks at equal variety: figures of a curve of perplexity against VERT.

Drawn boldly (at a high temperature), speech varies and makes little sense; drawn cautiously it
makes sense and repeats itself. So one temperature tells little. A sweep gives a point each, its
VERT (more is less varied) and its perplexity, and three figures compare the curve with what
people said, whose own VERT and perplexity are the *oracle*:

- the perplexity where the model is as varied as people are;
- the VERT where it makes as much sense;
- the area between these two points.

Source:
    Lakhotia et al. 2021 (GSLM), arXiv:2102.01192. They do not spell out the integration; here it
    is a straight line from point to point in the order of VERT, integrated over VERT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechlm.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tradeoff:
    """Figures of a curve; NaN where the sweep does not reach so far."""

    perplexity_at_vert: float
    """Where VERT is the oracle's."""
    vert_at_perplexity: float
    """Where perplexity is the oracle's; 0 to 1, as all VERT here."""
    area: float
    """Of perplexity over VERT, from the oracle's VERT to :attr:`vert_at_perplexity`: the less,
    the better, and below 0 for a model that is more varied than people at their perplexity."""


def tradeoff(
    verts: Sequence[float],
    perplexities: Sequence[float],
    *,
    oracle_vert: float,
    oracle_perplexity: float,
) -> Tradeoff:
    """Compare a sweep with the oracle.

    Args:
        verts: Of each temperature, in any order, 0 to 1.
        perplexities: The same.
        oracle_vert: Of recorded speech.
        oracle_perplexity: The same.

    Raises:
        InputError: Fewer than two points, or not as many of both.
    """
    if len(verts) != len(perplexities) or len(verts) < 2:
        raise InputError(
            f"expected a VERT and a perplexity of two temperatures or more, got {len(verts)} "
            f"and {len(perplexities)}"
        )
    at_vert = _between(verts, perplexities, oracle_vert)
    at_perplexity = _between(perplexities, verts, oracle_perplexity)
    area = math.nan
    if not math.isnan(at_vert + at_perplexity):
        area = _area(verts, perplexities, oracle_vert, at_perplexity)
    return Tradeoff(perplexity_at_vert=at_vert, vert_at_perplexity=at_perplexity, area=area)


def _knots(
    x: Sequence[float], y: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Points by rising x; those of one x as their mean."""
    places, where = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True)
    sums = np.bincount(where, weights=np.asarray(y, dtype=np.float64))
    return places, sums / np.bincount(where)


def _between(x: Sequence[float], y: Sequence[float], place: float) -> float:
    """y at a place of x, straight from point to point; NaN outside of all points."""
    places, values = _knots(x, y)
    return float(np.interp(place, places, values, left=np.nan, right=np.nan))


def _area(x: Sequence[float], y: Sequence[float], start: float, stop: float) -> float:
    places, values = _knots(x, y)
    low, high = min(start, stop), max(start, stop)
    inside = places[(places > low) & (places < high)]
    at = np.concatenate([[low], inside, [high]])
    area = float(np.trapezoid(np.interp(at, places, values), at))
    return area if stop >= start else -area
