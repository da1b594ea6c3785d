"""Which frame of one recording says what which frame of another says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from speechlm.errors import InputError

MOST_FRAMES = 12_000
"""Of either recording; the table of steps has a byte for each pair of frames, so 144 MB."""

ACROSS, ALONG, UP = 0, 1, 2


def align(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Dynamic time warping: the path through pairs of frames whose distances add up to least.

    Args:
        first: float64 [N, D], N >= 1.
        second: float64 [M, D], M >= 1.

    Returns:
        The frames of each on the path, from the first ones to the last, int64 [P] both. Of
        equally cheap steps the diagonal one is taken, then the one along the second, as in
        :func:`speechlm.evaluation.abx.warp`.

    Raises:
        InputError: Either is longer than :data:`MOST_FRAMES`.

    Source:
        Sakoe and Chiba 1978, "Dynamic programming algorithm optimization for spoken word
        recognition"; the symmetric steps, without weights and without a band.
    """
    height, width = len(first), len(second)
    if max(height, width) > MOST_FRAMES:
        raise InputError(
            f"expected at most {MOST_FRAMES} frames to align, got {height} and {width}; "
            "cut the recordings into pieces"
        )
    choices = np.empty(height * width, dtype=np.int8)
    stride = max(1, width - 1)
    # Costs by row + 1 on the last two diagonals; the frames before the first cost nothing.
    last, before = np.full(height + 1, np.inf), np.full(height + 1, np.inf)
    before[0] = 0.0
    for diagonal in range(height + width - 1):
        low, high = max(0, diagonal - width + 1), min(height, diagonal + 1)
        columns = second[diagonal - high + 1 : diagonal - low + 1][::-1]
        distances = np.sqrt(np.square(first[low:high] - columns).sum(axis=1))
        steps = np.stack([before[low:high], last[low + 1 : high + 1], last[low:high]])
        chosen = steps.argmin(axis=0)  # the first of equal ones
        start = diagonal + low * (width - 1)
        choices[start : start + (high - low - 1) * stride + 1 : stride] = chosen
        now = np.full(height + 1, np.inf)
        now[low + 1 : high + 1] = distances + np.take_along_axis(steps, chosen[None], 0)[0]
        last, before = now, last
    return _walk_back(choices.reshape(height, width))


def _walk_back(
    choices: npt.NDArray[np.int8],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    row, column = choices.shape[0] - 1, choices.shape[1] - 1
    path = [(row, column)]
    while row or column:
        choice = choices[row, column]
        row, column = row - (choice != ALONG), column - (choice != UP)
        path.append((row, column))
    rows, columns = np.array(path[::-1], dtype=np.intp).T
    return rows, columns
