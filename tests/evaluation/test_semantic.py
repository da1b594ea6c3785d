"""Spearman's correlation and distances of words against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.evaluation.semantic import POOLINGS, ranks, spearman, token_distance


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_ranks_and_correlation_are_scipys(values: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = np.array(values, dtype=np.float64).T
    assert ranks(first).tolist() == stats.rankdata(first).tolist()
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(spearman(first, second))
    else:
        assert spearman(first, second) == pytest.approx(100 * stats.spearmanr(first, second)[0])


def test_tokens_are_compared_all_with_all() -> None:
    first = [torch.tensor([0.0, 0.0]), torch.tensor([3.0, 0.0])]
    second = [torch.tensor([0.0, 4.0])]
    assert token_distance(first, second) == pytest.approx((4 + 5) / 2)


def test_poolings_make_one_vector_of_frames() -> None:
    frames = torch.tensor([[1.0, -1.0], [3.0, 5.0]])
    found = {name: pool(frames).tolist() for name, pool in POOLINGS.items()}
    assert found == {
        "mean": [2, 2],
        "max": [3, 5],
        "min": [1, -1],
        "sum": [4, 4],
        "last": [3, 5],
    }
