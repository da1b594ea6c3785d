"""Figures of counts against formulas done by hand or elsewhere, and their intervals."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio.functional
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.evaluation.representation import PAUSE, phone_agreement
from speechlm.evaluation.unit_statistics import (
    agreement_with_phones,
    count,
    edit_distance,
    entropy_bits,
    spread_interval,
    unit_perplexity,
)

UNITS = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@settings(deadline=None)
@given(UNITS, UNITS)
def test_edit_distance_is_torchaudios(first: list[int], second: list[int]) -> None:
    found = edit_distance(torch.tensor(first), torch.tensor(second))
    assert found == torchaudio.functional.edit_distance(first, second)
    assert found == edit_distance(torch.tensor(second), torch.tensor(first))
    assert edit_distance(torch.tensor(first), torch.tensor(first)) == 0


def test_counts_follow_how_often_recordings_are_drawn() -> None:
    found = count([torch.tensor([[0], [1]]), torch.tensor([[1], [1], [7]])])
    assert found.kinds.tolist() == [[0], [1], [7]]
    assert found.total().T.tolist() == [[1, 3, 1]]
    weights = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert found.drawn(weights).T.tolist() == [[2, 2, 0], [0, 4, 2]]


def test_even_use_has_the_perplexity_of_its_kinds() -> None:
    even, uneven = torch.ones(8, 1, dtype=torch.float64), torch.tensor([[6.0], [2.0]])
    assert float(unit_perplexity(even)) == pytest.approx(8)
    expected = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
    assert float(entropy_bits(uneven)) == pytest.approx(expected)
    # What never comes in a draw has no share of it.
    assert float(entropy_bits(torch.tensor([[4.0], [4.0], [0.0]]))) == pytest.approx(1)


def test_agreement_with_phones_is_that_of_one_table() -> None:
    generator = torch.Generator().manual_seed(4)
    phones = torch.randint(0, 6, (300,), generator=generator)
    noise = torch.randint(0, 12, (300,), generator=generator)
    units = torch.where(torch.rand(300, generator=generator) < 0.6, 2 * phones, noise)
    pairs = torch.stack([phones, units], dim=1)
    found = count([pairs[:100], pairs[100:]])
    figures = agreement_with_phones(found.total(), found.kinds)
    expected = phone_agreement(units, [f"p{int(phone)}" for phone in phones])
    assert expected["pnmi"] > 0.2
    for name in ("pnmi", "phone-purity", "cluster-purity"):
        assert float(figures[name]) == pytest.approx(100 * expected[name.replace("-", "_")])
    assert PAUSE == ""


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(5)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    truth = float(unit_perplexity(shares[:, None]))
    inside = 0
    for seed in range(40):
        drawn = torch.multinomial(shares, 40 * 20, replacement=True, generator=generator)
        found = count(list(drawn.reshape(40, 20, 1)))
        value = float(unit_perplexity(found.total()))
        low, high = spread_interval(
            value, lambda weights, found=found: unit_perplexity(found.drawn(weights)), 40, seed
        )
        assert low < value < high
        inside += low <= truth <= high
    assert inside >= 34
