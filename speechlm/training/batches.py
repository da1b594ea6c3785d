"""One batch as the trainer carries it to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from speechlm.layouts.conversation import LMSequence

if TYPE_CHECKING:
    from fairseq2.device import SupportsDeviceTransfer
else:  # its only use is to type; batches are made and tested without fairseq2
    SupportsDeviceTransfer = object


class UnitBatch(SupportsDeviceTransfer):
    """Sequences, a row each, padded on the right, and what is to be predicted of them."""

    def __init__(self, sequences: Sequence[LMSequence], pad: int) -> None:
        """Pad sequences into a batch; none at all makes one that counts nothing."""
        rows = max(len(sequences), 1)
        longest = max((len(sequence) for sequence in sequences), default=2)
        ids = torch.full((rows, longest), pad)
        weights = torch.zeros(rows, longest)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence.ids
            weights[row, : len(sequence)] = sequence.loss_weights
        counted = weights[:, 1:].flatten().nonzero().flatten()
        self.ids = ids[:, :-1].contiguous()
        """What is read, int64 [B, S]."""
        self.select = counted
        """Positions that predict something that counts, into the flattened B * S, int64 [N]."""
        self.targets = ids[:, 1:].flatten()[counted]
        """What they predict, int64 [N]."""
        self.weights = weights[:, 1:].flatten()[counted]
        """How much each counts, float32 [N]."""
        self.num_positions = sum(len(sequence) for sequence in sequences)
        """LM positions without padding."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> None:
        self.ids = self.ids.to(device, non_blocking=non_blocking)
        self.select = self.select.to(device, non_blocking=non_blocking)
        self.targets = self.targets.to(device, non_blocking=non_blocking)
        self.weights = self.weights.to(device, non_blocking=non_blocking)
