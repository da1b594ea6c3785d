"""The nearest centroid is that of exact distances, however the numbers lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm_tokenizers import nearest
from speechlm_tokenizers.nearest import NearestCentroid


@pytest.fixture(autouse=True, params=["as it is", "without 8-bit products"])
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "as it is":
        monkeypatch.setattr(nearest, "_has_int8_products", lambda: False)


def exact(features: Tensor, centroids: Tensor) -> Tensor:
    """By distances in float64, each from its own difference."""
    rows = [
        (features[:, None].double() - some[None].double()).square().sum(dim=2)
        for some in centroids.split(16)
    ]
    return torch.cat(rows, dim=1).argmin(dim=1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_goes_to_the_nearest() -> None:
    features, centroids = random(700, 96), random(130, 96, seed=1)
    codes = NearestCentroid(centroids)(features)
    assert torch.equal(codes, exact(features, centroids))
    assert len(codes.unique()) > 50


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dim=st.integers(1, 70),
    num_units=st.integers(2, 40),
    offset=st.sampled_from([0.0, 1.0, 300.0]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    outlier=st.sampled_from([1.0, 50.0]),
    levels=st.sampled_from([0, 2, 30]),
)
def test_any_numbers_go_to_the_nearest(
    seed: int,
    dim: int,
    num_units: int,
    offset: float,
    scale: float,
    outlier: float,
    levels: int,
) -> None:
    """Offsets, dimensions that outweigh all others, and lattices, whose rounding conspires."""
    features, centroids = random(60, dim, seed=seed), random(num_units, dim, seed=seed + 1)
    if levels:
        features, centroids = ((x * levels).round() / levels for x in (features, centroids))
    weights = torch.ones(dim)
    weights[0] = outlier
    features, centroids = (scale * (x * weights + offset) for x in (features, centroids))
    assert torch.equal(NearestCentroid(centroids)(features), exact(features, centroids))


def test_of_equal_centroids_it_is_the_first() -> None:
    centroids = random(20, 30)
    centroids = torch.cat([centroids, centroids])
    features = torch.cat([centroids, random(50, 30, seed=1)])
    codes = NearestCentroid(centroids)(features)
    assert codes[:40].tolist() == [*range(20), *range(20)]
    assert int(codes.max()) < 20


def test_centroids_themselves_and_their_mean_are_assigned() -> None:
    centroids = random(50, 64)
    features = torch.cat([centroids, centroids.mean(dim=0, keepdim=True), torch.zeros(1, 64)])
    codes = NearestCentroid(centroids)(features)
    assert torch.equal(codes, exact(features, centroids))
    assert codes[:50].tolist() == list(range(50))


def test_all_centroids_at_one_point_are_no_error() -> None:
    assert NearestCentroid(torch.ones(5, 8))(random(9, 8)).tolist() == [0] * 9


def test_no_frames_give_no_units() -> None:
    assert NearestCentroid(random(5, 8))(torch.zeros(0, 8)).shape == (0,)


def test_the_result_hangs_on_no_other_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    features, centroids = random(500, 40), random(60, 40, seed=1)
    assigned = NearestCentroid(centroids)
    expected = assigned(features)
    for size in (1, 7, 100):
        monkeypatch.setattr(nearest, "BLOCK", size)
        assert torch.equal(assigned(features), expected)


def test_nothing_closer_than_half_a_margin_changes_a_unit() -> None:
    features, centroids = random(300, 24), random(40, 24, seed=1)
    assigned = NearestCentroid(centroids)
    margins = assigned.margins(features)
    distances = torch.cdist(features, centroids).sort(dim=1).values
    torch.testing.assert_close(margins, distances[:, 1] - distances[:, 0], atol=1e-4, rtol=1e-3)
    change = random(300, 24, seed=2)
    change *= 0.49 * (margins / change.norm(dim=1))[:, None]
    assert torch.equal(assigned(features), assigned(features + change))
