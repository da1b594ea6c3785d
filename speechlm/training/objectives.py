"""What training minimises: pure functions from scores to sums, nothing of any trainer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Objective:
    """Sums over a batch; divide by ``weight`` for means. float32 scalars each."""

    loss: Tensor
    """Weighted negative log-likelihood in nats, with its graph."""
    weight: Tensor
    """How much the predictions count together."""
    correct: Tensor
    """Weight of those whose most probable unit is right."""


def next_unit_objective(logits: Tensor, targets: Tensor, weights: Tensor) -> Objective:
    """Score predictions of the next unit.

    Args:
        logits: float [N, V].
        targets: What came next, int64 [N].
        weights: How much each prediction counts, float32 [N].
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    hits = (logits.detach().argmax(dim=1) == targets).float()
    return Objective(
        loss=(losses * weights).sum(), weight=weights.sum(), correct=(hits * weights).sum()
    )
