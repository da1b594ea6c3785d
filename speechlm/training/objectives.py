"""What training minimises: pure functions from scores to sums, nothing of any trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Objective:
    """Sums over a batch, for each of the R rows; divide by ``weights`` for means."""

    losses: Tensor
    """Weighted negative log-likelihood in nats, with its graph, float32 [R]."""
    weights: Tensor
    """How much the predictions count together, float32 [R]."""
    correct: Tensor
    """Weight of those whose most probable id is right, float32 [R]."""


def next_column_objective(scores: Sequence[Tensor], targets: Tensor, weights: Tensor) -> Objective:
    """Score predictions of the next column.

    Args:
        scores: Logits of each row, R of float [N, V_r].
        targets: Which of its V_r came next in each row, int64 [N, R].
        weights: How much each prediction counts, float32 [N, R].
    """
    losses, correct = [], []
    for row, logits in enumerate(scores):
        wanted, counts = targets[:, row], weights[:, row]
        nlls = F.cross_entropy(logits.float(), wanted, reduction="none")
        hits = (logits.detach().argmax(dim=1) == wanted).float()
        losses.append((nlls * counts).sum())
        correct.append((hits * counts).sum())
    return Objective(
        losses=torch.stack(losses), weights=weights.sum(dim=0), correct=torch.stack(correct)
    )
