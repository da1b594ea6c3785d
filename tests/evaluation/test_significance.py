"""P-values, against slow references and by what must hold of any."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.evaluation.significance import exchange_p, holm, sign_test


def test_exchanging_items_agrees_with_all_exchanges_there_are() -> None:
    draw = np.random.default_rng(0)
    first, other = (
        np.stack([draw.integers(0, 6, 9), draw.integers(5, 12, 9)], axis=1) for _ in "ab"
    )
    found = []
    for turned in product((False, True), repeat=9):
        one, two = (
            np.where(np.array(turned)[:, None], b, a).sum(axis=0)
            for a, b in ((first, other), (other, first))
        )
        found.append(abs(two[0] / two[1] - one[0] / one[1]))
    exact = np.mean([value >= found[0] - 1e-12 for value in found])
    assert exchange_p(first, other, seed=1) == pytest.approx(exact, abs=0.02)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(0, 99))
def test_either_side_may_come_first(values: list[float], seed: int) -> None:
    other = np.stack([values, np.ones(len(values))], axis=1)
    first = other * [0, 1]
    both = exchange_p(first, other, seed=seed), exchange_p(other, first, seed=seed)
    assert both[0] == pytest.approx(both[1], abs=0.03)
    assert 0 < both[0] <= 1


@pytest.mark.parametrize(("more", "less"), [(0, 0), (5, 0), (7, 3), (3, 7), (5, 5)])
def test_the_sign_test_counts_all_signs_there_are(more: int, less: int) -> None:
    drawn = [sum(signs) for signs in product((-1, 1), repeat=more + less)]
    expected = np.mean([abs(value) >= abs(more - less) for value in drawn])
    assert sign_test(more, less) == pytest.approx(expected)
    assert sign_test(1000 * more, 1000 * less) <= sign_test(more, less)


def test_holm_corrects_step_by_step() -> None:
    # Each is its own times how many are not smaller, and none is below a smaller one's.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(values: list[float]) -> None:
    adjusted = holm(values)
    for value, after in zip(values, adjusted, strict=True):
        assert value <= after <= min(1.0, value * len(values)) + 1e-12
    assert np.argsort(values, kind="stable").tolist() == sorted(
        range(len(values)), key=lambda index: (adjusted[index], values[index], index)
    )
