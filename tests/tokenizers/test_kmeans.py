"""k-means finds clusters that are there, and never leaves a centroid without frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechlm.errors import CheckpointError
from speechlm_tokenizers import kmeans
from speechlm_tokenizers.kmeans import assign, fit_kmeans, fit_resumable


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_separate_clusters_are_found_exactly() -> None:
    centres = 100 * torch.randn(20, 5, generator=_generator())
    labels = torch.arange(20).repeat(50)
    frames = centres[labels] + 0.01 * torch.randn(1000, 5, generator=_generator(1))
    centroids = fit_kmeans(frames, 20, 10, _generator(2))
    codes = assign(frames, centroids)
    for label in range(20):
        assert codes[labels == label].unique().numel() == 1
    assert codes.unique().numel() == 20


def test_assignment_is_to_the_nearest_whatever_the_block() -> None:
    frames = torch.randn(40_000, 3, generator=_generator(), dtype=torch.float64)
    centroids = torch.randn(7, 3, generator=_generator(1), dtype=torch.float64)
    assert torch.equal(assign(frames, centroids), torch.cdist(frames, centroids).argmin(dim=1))


def test_duplicated_frames_leave_no_nan() -> None:
    frames = torch.ones(100, 4)
    assert torch.isfinite(fit_kmeans(frames, 8, 5, _generator())).all()


def test_more_passes_never_fit_worse() -> None:
    frames = torch.randn(2000, 8, generator=_generator())

    def inertia(passes: int) -> float:
        centroids = fit_kmeans(frames, 32, passes, _generator(1))
        return float((frames - centroids[assign(frames, centroids)]).square().sum())

    assert inertia(10) <= inertia(2) <= inertia(0)


def test_a_resumable_fit_finds_clusters_and_goes_on_where_it_was(tmp_path: Path) -> None:
    centres = 100 * torch.randn(20, 24, generator=_generator())
    labels = torch.arange(20).repeat(50)
    frames = centres[labels] + 5 * torch.randn(1000, 24, generator=_generator(1))
    expected = fit_resumable(frames, 20, 10, seed=1)
    assert assign(frames, expected).unique().numel() == 20
    partly = fit_resumable(frames, 20, 1, seed=1, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["centroids-000001.safetensors"]
    if not torch.equal(partly, expected):
        assert torch.equal(fit_resumable(frames, 20, 10, seed=1, folder=tmp_path), expected)
    assert not torch.equal(fit_resumable(frames, 20, 10, seed=2), expected)


def test_a_damaged_pass_is_named(tmp_path: Path) -> None:
    (tmp_path / "centroids-000003.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"cannot be read .*delete .* to begin anew"):
        fit_resumable(torch.randn(50, 4), 5, 3, seed=1, folder=tmp_path)


def test_sums_on_a_gpu_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There by products, in pieces, as adding one by one has no order."""
    frames = torch.randn(500, 6, generator=_generator())
    codes = torch.randint(0, 9, (500,), generator=_generator(1))
    monkeypatch.setattr(kmeans, "ONE_HOT", 9 * 64)
    torch.testing.assert_close(
        kmeans._sums_by_product(frames, codes, 10), kmeans._sums(frames, codes, 10)
    )
