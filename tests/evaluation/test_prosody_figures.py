"""Prosody of units, against slow sums and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechlm.errors import InputError
from speechlm.evaluation.prosody import (
    Stretches,
    absolute_error,
    correlations,
    deviations,
    least_error,
    mean,
    moments,
    pair_moments,
    stretches,
)

NAN = np.nan


def test_units_have_their_length_and_mean_pitch() -> None:
    codes = torch.tensor([5, 5, 7, 7, 7, 5])  # 0.02 s each: two measurements of pitch a frame
    log_f0 = torch.arange(12.0)
    voiced = torch.tensor([1, 1, 0, 1] + [0] * 6 + [0, 1]).bool()
    found = stretches(codes, 50.0, log_f0, voiced)
    assert found.durations_s == pytest.approx([0.04, 0.06, 0.02])
    assert found.log_f0 == pytest.approx([4 / 3, NAN, 11.0], nan_ok=True)


def test_an_error_counts_where_both_are_known() -> None:
    found, target = np.array([1.0, 2.0, NAN, 4.0]), np.array([3.0, NAN, 1.0, 5.0, 9.0])
    assert absolute_error(found, target) == (3.0, 2)
    assert absolute_error(np.zeros(0), target) == (0.0, 0)


def test_the_nearest_of_several_samples_counts() -> None:
    target = np.array([1.0, 1.0, 1.0])
    samples = [np.array([2.0, 2.0, 2.0]), np.array([1.0, 1.5, 1.0]), np.array([NAN, NAN, NAN])]
    assert least_error(samples, target) == (0.5, 3)
    assert least_error([target, *samples], target) == (0.0, 3)
    assert least_error(samples[2:], target) is None


def test_pooled_deviations_are_those_of_all_values() -> None:
    draw = np.random.default_rng(0)
    parts = [draw.normal(5, 0.3, size) for size in (4, 9, 1)]
    sums = np.sum([moments(np.append(part, NAN)) for part in parts], axis=0)
    found = deviations(np.stack([sums, np.zeros(3)]))
    assert found[0] == pytest.approx(np.concatenate(parts).std())
    assert np.isnan(found[1])


def test_pooled_correlations_are_pearsons() -> None:
    pearson = pytest.importorskip("scipy.stats").pearsonr
    draw = np.random.default_rng(1)
    x = draw.normal(5, 0.3, 20)
    y = x + draw.normal(0, 0.3, 20)
    pairs = list(zip(x, y, strict=True))
    sums = np.sum([pair_moments([*pairs[:7], (1.0, NAN)]), pair_moments(pairs[7:])], axis=0)
    alike = pair_moments([(5.1, 1.0), (5.1, 2.0), (5.1, 3.0)])
    found = correlations(np.array([sums, alike, pair_moments(pairs[:1]), pair_moments([])]))
    assert found[0] == pytest.approx(pearson(x, y)[0])
    assert np.isnan(found[1:]).all()


def test_a_mean_is_of_what_is_known() -> None:
    assert mean(np.array([1.0, NAN, 3.0])) == 2.0
    assert np.isnan(mean(np.array([NAN])))


def test_pitch_without_its_durations_is_refused() -> None:
    with pytest.raises(InputError, match=r"of the same units, got \[2\] and \[3\]"):
        Stretches(durations_s=np.zeros(2), log_f0=np.zeros(3))
