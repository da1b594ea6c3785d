"""Krippendorff's alpha, by his own example and by the package that others use."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from speechlm.evaluation.listening.agreement import krippendorff_alpha

NONE = np.nan
# Krippendorff 2011, section C: four observers, twelve units.
EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]


@pytest.mark.parametrize(("level", "alpha"), [("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_paper(level: Literal["ordinal", "interval"], alpha: float) -> None:
    assert krippendorff_alpha(EXAMPLE, level) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_alpha_is_that_of_the_package(level: Literal["ordinal", "interval"]) -> None:
    package = pytest.importorskip("krippendorff")
    draw = np.random.default_rng(0)
    for _ in range(20):
        table = draw.integers(1, 6, (6, 9)).astype(float)
        table[draw.random(table.shape) < 0.3] = np.nan
        expected = package.alpha(table, level_of_measurement=level)
        assert krippendorff_alpha(table, level) == pytest.approx(expected)


def test_alpha_is_one_for_perfect_agreement_and_none_where_nothing_tells() -> None:
    assert krippendorff_alpha([[1, 2, 5], [1, 2, 5]], "interval") == 1
    assert krippendorff_alpha([[3, 3], [3, 3]], "ordinal") is None
    assert krippendorff_alpha([[1, NONE], [NONE, 2]], "interval") is None
    draw = np.random.default_rng(1)
    chance = krippendorff_alpha(draw.integers(1, 6, (20, 500)), "ordinal")
    assert chance == pytest.approx(0, abs=0.01)
