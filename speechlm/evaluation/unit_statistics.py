"""Figures of units over a whole corpus, whose intervals need every recording's counts.

An entropy or a mutual information is no mean over recordings. So each recording gives counts,
recordings are drawn anew with their counts, and the figure is computed of every draw. A draw has
fewer kinds than all recordings, so its figure leans to one side, and its percentiles need not
hold the figure at all: the interval is the figure and what its draws spread around their own
mean, 1.96 standard deviations on each side. It says how far another corpus of the same size
would be, not what endless speech would give: compare tokenizers on the same recordings.

Source of the interval:
    Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 6 (standard errors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NUM_DRAWS = 1000
DRAWS_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Counts:
    """How often each kind comes in each recording."""

    kinds: Tensor
    """What is counted, int64 [M, C]: a unit, or a phone and a unit."""
    of_recordings: Tensor
    """Counts, sparse float64 [M, N]."""

    def total(self) -> Tensor:
        """Of all recordings, float64 [M, 1]."""
        return self.drawn(torch.ones(self.of_recordings.shape[1], 1, dtype=torch.float64))

    def drawn(self, weights: Tensor) -> Tensor:
        """Of draws, float64 [M, R]; ``weights`` [N, R] is how often each recording was drawn."""
        with torch.sparse.check_sparse_tensor_invariants(True):  # type: ignore[no-untyped-call]
            drawn: Tensor = torch.sparse.mm(self.of_recordings, weights)
        return drawn


def count(recordings: Sequence[Tensor]) -> Counts:
    """Count what comes in recordings, int64 [F, C] each."""
    rows = torch.cat(list(recordings))
    owners = torch.repeat_interleave(
        torch.arange(len(recordings)), torch.tensor([len(each) for each in recordings])
    )
    kinds, which = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.stack([which, owners])
    ones = torch.ones(len(rows), dtype=torch.float64)
    size = (len(kinds), len(recordings))
    # Newer torch warns where nobody says whether it shall check.
    with torch.sparse.check_sparse_tensor_invariants(True):  # type: ignore[no-untyped-call]
        counted = torch.sparse_coo_tensor(places, ones, size).coalesce()
    return Counts(kinds=kinds, of_recordings=counted)


def entropy_bits(counts: Tensor) -> Tensor:
    """Of each column of counts [M, R], bits [R]."""
    shares = counts / counts.sum(dim=0)
    bits: Tensor = -torch.xlogy(shares, shares).sum(dim=0) / math.log(2)
    return bits


def unit_perplexity(counts: Tensor) -> Tensor:
    """2 to the power of the entropy of units, [M, R] to [R]: how many are in even use."""
    perplexity: Tensor = 2 ** entropy_bits(counts)
    return perplexity


def agreement_with_phones(counts: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    """PNMI and purities of each column, in percent; see ``representation.phone_agreement``.

    Args:
        counts: Of phones with units, float64 [M, R].
        kinds: Number of the phone and of the unit, int64 [M, 2].
    """
    marginals, most = [], []
    for kind in kinds.T:
        names, which = torch.unique(kind, return_inverse=True)
        zeros = counts.new_zeros(len(names), counts.shape[1])
        marginals.append(zeros.index_add(0, which, counts))
        places = which[:, None].expand_as(counts)
        most.append(zeros.scatter_reduce(0, places, counts, "amax").sum(dim=0))
    of_phones, of_units = (entropy_bits(marginal) for marginal in marginals)
    total = counts.sum(dim=0)
    told = of_phones + of_units - entropy_bits(counts)
    return {
        "pnmi": 100 * torch.where(of_phones > 0, told / of_phones, 1.0),
        "phone-purity": 100 * most[1] / total,
        "cluster-purity": 100 * most[0] / total,
    }


def spread_interval(
    value: float, figure: Callable[[Tensor], Tensor], num_recordings: int, seed: int
) -> tuple[float, float]:
    """The 95 % interval of a figure by drawing recordings anew.

    Args:
        value: The figure of all recordings.
        figure: Figures [R] of draws, of how often each recording was drawn, float64 [N, R].
        num_recordings: N.
        seed: Same seed, same interval.
    """
    draw = np.random.default_rng(seed)
    found: list[npt.NDArray[np.float64]] = []
    for _ in range(NUM_DRAWS // DRAWS_AT_ONCE):
        even = np.full(num_recordings, 1 / num_recordings)
        weights = draw.multinomial(num_recordings, even, size=DRAWS_AT_ONCE)
        found.append(figure(torch.tensor(weights.T, dtype=torch.float64)).numpy())
    spread = 1.96 * float(np.nanstd(np.concatenate(found)))
    return value - spread, value + spread


def edit_distance(first: Tensor, second: Tensor) -> int:
    """Fewest units to put in, take out or change, of int64 [U] and [U'] (Levenshtein)."""
    one, other = first.numpy(), second.numpy()
    places = np.arange(len(other) + 1)
    row = places.copy()
    for unit in one:
        best = np.minimum(row[1:] + 1, row[:-1] + (other != unit))
        # Putting units in goes along the row: the running least of what starts anywhere.
        row = np.minimum.accumulate(np.concatenate([[row[0] + 1], best]) - places) + places
    return int(row[-1])
