"""Figures of the curve of perplexity against variety, against slow sums."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from speechlm.errors import InputError
from speechlm.evaluation.tradeoff import tradeoff

VERTS = [0.30, 0.05, 0.22, 0.14]
PERPLEXITIES = [60.0, 400.0, 90.0, 180.0]


def slow_curve(vert: float) -> float:
    points = sorted(zip(VERTS, PERPLEXITIES, strict=True))
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= vert <= right:
            return low + (high - low) * (vert - left) / (right - left)
    return math.nan


def test_the_area_is_what_a_sum_of_thin_stripes_gives() -> None:
    found = tradeoff(VERTS, PERPLEXITIES, oracle_vert=0.11, oracle_perplexity=75.0)
    assert found.perplexity_at_vert == pytest.approx(slow_curve(0.11))
    assert slow_curve(found.vert_at_perplexity) == pytest.approx(75.0)
    edges = np.linspace(0.11, found.vert_at_perplexity, 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    stripes = sum(slow_curve(middle) for middle in middles) * (edges[1] - edges[0])
    assert found.area == pytest.approx(stripes, rel=1e-6)
    assert found.area > 75.0 * (found.vert_at_perplexity - 0.11)


def test_a_model_at_the_oracle_has_no_area_and_a_better_one_less() -> None:
    at = tradeoff(VERTS, PERPLEXITIES, oracle_vert=0.22, oracle_perplexity=90.0)
    assert (at.perplexity_at_vert, at.vert_at_perplexity) == pytest.approx((90.0, 0.22))
    assert at.area == pytest.approx(0.0)
    better = tradeoff(VERTS, PERPLEXITIES, oracle_vert=0.25, oracle_perplexity=200.0)
    assert better.area < 0


def test_nothing_is_said_beyond_the_sweep() -> None:
    found = tradeoff(VERTS, PERPLEXITIES, oracle_vert=0.01, oracle_perplexity=75.0)
    assert math.isnan(found.perplexity_at_vert)
    assert math.isnan(found.area)
    assert not math.isnan(found.vert_at_perplexity)


def test_points_of_one_vert_count_as_their_mean() -> None:
    found = tradeoff([0.1, 0.1, 0.2], [50, 70, 40], oracle_vert=0.1, oracle_perplexity=55)
    assert found.perplexity_at_vert == pytest.approx(60)


def test_one_temperature_is_no_curve() -> None:
    with pytest.raises(InputError, match="two temperatures or more, got 1 and 1"):
        tradeoff([0.1], [50], oracle_vert=0.1, oracle_perplexity=55)
