"""Items add up to figures with intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.evaluation.tasks.items import RIGHT, WRONG, Item, figure


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 1000))
def test_intervals_hold_the_truth_19_times_in_20(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth, held, trials = 0.6, 0, 400
    for _ in range(trials):
        rights = draw.random((60, 1)) < truth
        scored = [
            Item(id=str(item), figures={"sum": RIGHT if right else WRONG})
            for item, (right,) in enumerate(rights)
        ]
        found = figure(scored, "sum", seed=1)
        assert found is not None
        low, high = found.ci95
        held += low <= 100 * truth <= high
    assert held / trials == pytest.approx(0.95, abs=0.04)
