"""The figures of a report that are formulas of a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from speechlm.evaluation.intervals import bootstrap_interval, wilson_interval
from speechlm.layouts.grid import LMSequence
from speechlm.model.unit_lm import UnitLM
from speechlm.units import Units


def proportion(right: Sequence[bool]) -> dict[str, Any]:
    """The share of ``True`` with its 95 % Wilson interval; accuracy None without any."""
    low, high = wilson_interval(sum(right), len(right))
    accuracy = sum(right) / len(right) if right else None
    return {"accuracy": accuracy, "low": low, "high": high, "n": len(right)}


def confusions(pairs: Sequence[tuple[str, str]], most: int = 20) -> list[dict[str, Any]]:
    """What was heard in the place of what, the most frequent first; of (expected, heard)."""
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"expected": expected, "heard": heard, "count": count}
        for (expected, heard), count in ordered[:most]
    ]


def unit_perplexity(lm: UnitLM, sequences: Sequence[LMSequence], seed: int) -> dict[str, Any]:
    """How many units the LM hesitates between, with a 95 % bootstrap interval.

    Args:
        sequences: Their loss weights, 0 or 1, say which positions count.

    Returns:
        ``perplexity`` = exp(-log likelihood / positions), its interval, ``positions``.
    """
    losses = -lm.log_likelihood(sequences).double()
    positions = torch.tensor([float(sequence.loss_weights.sum()) for sequence in sequences])
    rows = torch.stack([losses, positions.double()], dim=1).tolist()
    low, high = bootstrap_interval(rows, lambda sums: np.exp(sums[:, 0] / sums[:, 1]), seed=seed)
    return {
        "perplexity": float((losses.sum() / positions.sum()).exp()),
        "low": low,
        "high": high,
        "positions": int(positions.sum()),
    }


def codebook_usage(units: Sequence[Units], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """How evenly units are used, a row a codebook.

    Args:
        units: Of some recordings.
        sizes: Units of each codebook.

    Returns:
        ``used`` units of ``size``, their ``share``, ``perplexity`` = 2^entropy, ``frames``, and
        the ``counts`` of all units, descending.
    """
    rows = []
    for codebook in range(units[0].num_codebooks):
        codes = torch.cat([one.expand().codes[codebook] for one in units])
        size = sizes[codebook]
        counts = torch.bincount(codes, minlength=size).double()
        shares = counts[counts > 0] / counts.sum()
        rows.append(
            {
                "used": len(shares),
                "size": size,
                "share": len(shares) / size,
                "perplexity": float((-(shares * shares.log()).sum()).exp()),
                "frames": len(codes),
                "counts": counts.sort(descending=True).values.long().tolist(),
            }
        )
    return rows
