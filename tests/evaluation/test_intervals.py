from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlm.evaluation.intervals import (
    _expanded_tail,
    bootstrap_interval,
    mean_interval,
    ratio_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_interval_holds_the_share_and_mirrors(right: int, wrong: int) -> None:
    low, high = wilson_interval(right, right + wrong)
    assert 0.0 <= low <= (right / (right + wrong) if right + wrong else 0.5) <= high <= 1.0
    assert wilson_interval(wrong, right + wrong) == pytest.approx((1 - high, 1 - low))


def test_without_trials_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 and 2"):
        wilson_interval(3, 2)


def test_bootstrap_interval_of_a_mean_is_near_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, size=(400, 1))
    low, high = bootstrap_interval(values.tolist(), lambda sums: sums[:, 0] / 400, seed=1)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_interval_depends_on_nothing_but_the_seed() -> None:
    values = [[float(value)] for value in range(20)]
    first, again, other = (
        bootstrap_interval(values, lambda sums: sums[:, 0], seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def voices_of_words(draw: np.random.Generator) -> list[list[float]]:
    """Means over four voices of words that are unequally hard."""
    return [[float((draw.random(4) < share).mean()), 1.0] for share in draw.beta(3.0, 2.0, size=80)]


def errors_of_words(draw: np.random.Generator) -> list[list[float]]:
    """Word errors of recordings of unequal lengths."""
    lengths = draw.integers(3, 20, size=80)
    return [[float(draw.binomial(n, draw.beta(1.0, 6.0))), float(n)] for n in lengths]


@pytest.mark.parametrize(("made", "truth"), [(voices_of_words, 0.6), (errors_of_words, 1 / 7)])
def test_bootstrap_intervals_hold_the_truth_19_times_in_20(
    made: Callable[[np.random.Generator], list[list[float]]], truth: float
) -> None:
    draw = np.random.default_rng(4)
    held = 0
    for trial in range(600):
        low, high = ratio_interval(made(draw), seed=trial)
        held += low <= truth <= high
    assert held / 600 == pytest.approx(0.95, abs=0.02)


def test_few_rows_have_wider_intervals_than_their_percentiles() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, size=8)
    low, high = mean_interval(values.tolist(), seed=1)
    draws = np.random.default_rng(1).integers(8, size=(1000, 8))
    plain = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    assert low < plain[0] < plain[1] < high
    # By the exact quantile of Student it is 0.015881.
    assert _expanded_tail(0.025, 20) == pytest.approx(0.0159, abs=0.0005)
    assert _expanded_tail(0.025, 100_000) == pytest.approx(0.025, abs=1e-5)
