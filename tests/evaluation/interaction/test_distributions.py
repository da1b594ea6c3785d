"""Intervals of distances and quantiles, by drawing whole dialogues again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.evaluation.interaction import distributions
from speechlm.evaluation.interaction.distributions import quantile_interval, wasserstein_interval
from speechlm.evaluation.interaction.turns import wasserstein

GROUPS = st.lists(st.lists(st.floats(0, 5), max_size=4), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(GROUPS)
def test_equal_sides_are_nothing_apart(groups: list[list[float]]) -> None:
    interval = wasserstein_interval(groups, groups, paired=True, seed=1)
    assert interval == ((0.0, 0.0) if any(groups) else None)


@settings(max_examples=30, deadline=None)
@given(GROUPS, GROUPS)
def test_a_single_draw_is_the_distance_of_what_was_drawn(
    first: list[list[float]], second: list[list[float]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributions, "NUM_RESAMPLES", 1)
        found = wasserstein_interval(first, second, paired=False, seed=5)
    sides = []
    for groups, seed in ((first, 5), (second, 6)):
        drawn = np.random.default_rng(seed).integers(len(groups), size=len(groups))
        sides.append([value for place in drawn for value in groups[place]])
    if not all(sides):
        assert found is None
    else:
        assert found == pytest.approx((wasserstein(*sides),) * 2, abs=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exponential pauses of 1 and 2 s on average are 1 s apart; their median is log 2."""
    monkeypatch.setattr(distributions, "NUM_RESAMPLES", 100)
    draw = np.random.default_rng(0)
    held = [0, 0]
    for trial in range(50):
        sides = [
            [draw.exponential(mean, size=8).tolist() for _ in range(40)] for mean in (1.0, 2.0)
        ]
        apart = wasserstein_interval(*sides, paired=False, seed=trial)
        middle = quantile_interval(sides[0], 0.5, seed=trial)
        assert apart is not None
        assert middle is not None
        held[0] += apart[0] <= 1.0 <= apart[1]
        held[1] += middle[0] <= np.log(2) <= middle[1]
    assert all(42 <= count <= 50 for count in held), held


def test_intervals_depend_on_nothing_but_the_seed() -> None:
    groups = [[0.1 * place, 0.2 * place] for place in range(9)]
    first, again, other = (quantile_interval(groups, 0.9, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert quantile_interval([[], []], 0.5, seed=1) is None
