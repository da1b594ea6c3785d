from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.errors import InputError
from speechlm.evaluation.abx import warp
from speechlm.evaluation.signal import alignment
from speechlm.evaluation.signal.alignment import align

Frames = npt.NDArray[np.float64]


def slow_path(first: Frames, second: Frames) -> list[tuple[int, int]]:
    """Dynamic time warping as the textbook has it."""
    cost: dict[tuple[int, int], float] = {(-1, -1): 0.0}
    came: dict[tuple[int, int], tuple[int, int]] = {}
    for row in range(len(first)):
        for column in range(len(second)):
            ways = [(row - 1, column - 1), (row, column - 1), (row - 1, column)]
            best = min(ways, key=lambda way: cost.get(way, np.inf))
            distance = float(np.sqrt(((first[row] - second[column]) ** 2).sum()))
            cost[row, column] = cost[best] + distance
            came[row, column] = best
    path = [(len(first) - 1, len(second) - 1)]
    while path[-1] != (0, 0):
        path.append(came[path[-1]])
    return path[::-1]


sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(0, 10_000))
def test_the_path_is_the_textbooks_and_its_mean_is_abx_s(n: int, m: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    # Whole numbers, so that there are ties, and distances whose sums are exact in either precision.
    first, second = (draw.integers(0, 4, (count, 1)).astype(float) for count in (n, m))
    rows, columns = align(first, second)

    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == slow_path(first, second)
    distances = np.sqrt(((first[:, None] - second[None]) ** 2).sum(2))
    mean = warp(torch.tensor(distances)[None].float(), torch.tensor([n]), torch.tensor([m]))
    assert distances[rows, columns].mean() == pytest.approx(float(mean), abs=1e-6)


def test_frames_that_are_said_twice_are_found() -> None:
    frames = np.arange(5.0)[:, None]
    rows, columns = align(frames, frames.repeat([1, 3, 1, 1, 2], axis=0))
    assert rows.tolist() == [0, 1, 1, 1, 2, 3, 4, 4]
    assert columns.tolist() == list(range(8))


def test_what_would_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MOST_FRAMES", 4)
    with pytest.raises(InputError, match="at most 4 frames to align, got 5 and 2"):
        align(np.zeros((5, 1)), np.zeros((2, 1)))
