"""How often chance alone would give a difference as large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

NUM_DRAWS = 10_000
CHUNK = 250
"""Draws at a time, for memory."""


def exchange_p(first: npt.ArrayLike, other: npt.ArrayLike, *, seed: int) -> float:
    """The p-value, of both sides, of a difference of two ratios over the same items.

    Were both alike, an item's numbers could as well be the other's: it is counted how often a
    draw of who has which gives a difference as large as the one that was found.

    Args:
        first: Sum and count of each item, float64 [N, 2].
        other: The same items' of the other, float64 [N, 2].
        seed: Same seed, same value.

    Source:
        Fisher 1935, "The design of experiments", the paired randomisation test.
    """
    one, two = np.asarray(first, np.float64), np.asarray(other, np.float64)
    change, total, sums = two - one, one.sum(axis=0), one.sum(axis=0) + two.sum(axis=0)
    observed = _difference(total[None], sums)[0]
    beyond = 0
    for exchange in _coins(len(one), seed):
        drawn = total + exchange @ change
        beyond += int((abs(_difference(drawn, sums)) >= abs(observed) - 1e-12).sum())
    return (beyond + 1) / (NUM_DRAWS + 1)


def _difference(
    first: npt.NDArray[np.float64], sums: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The other's ratio less the first's, [R], of the first's sums and counts [R, 2]."""
    other = sums - first
    # A side that happens to be dealt no count at all says nothing of how large chance can be.
    with np.errstate(divide="ignore", invalid="ignore"):
        found: npt.NDArray[np.float64] = other[:, 0] / other[:, 1] - first[:, 0] / first[:, 1]
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def _coins(number: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    """Fair coins, 0 or 1, float64 [CHUNK, number], NUM_DRAWS rows in all."""
    draw = np.random.default_rng(seed)
    for _ in range(NUM_DRAWS // CHUNK):
        # Bits of random bytes: a fortieth of the time of as many random numbers.
        width = -(-number // 8)
        drawn = np.frombuffer(draw.bytes(CHUNK * width), np.uint8).reshape(CHUNK, width)
        yield np.unpackbits(drawn, axis=1, count=number).astype(np.float64)


def sign_test(more: int, less: int) -> float:
    """The exact p-value, of both sides, of so many signs each way; ties are left out before.

    Source:
        Arbuthnott 1710; Conover 1999, "Practical nonparametric statistics", 3.4.
    """
    trials = more + less
    ways = tail = 1
    for k in range(min(more, less)):
        ways = ways * (trials - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << trials))


def holm(values: Sequence[float]) -> list[float]:
    """P-values after Holm's correction for asking so many questions at once, in their order.

    Source:
        Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted = [1.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
