"""One batch as the trainer carries it to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from speechlm.layouts.grid import LMSequence

if TYPE_CHECKING:
    from fairseq2.device import SupportsDeviceTransfer
else:  # its only use is to type; batches are made and tested without fairseq2
    SupportsDeviceTransfer = object


class UnitBatch(SupportsDeviceTransfer):
    """Sequences of R rows each, padded on the right, and what is to be predicted of them."""

    def __init__(self, sequences: Sequence[LMSequence], *, num_rows: int, pad: int) -> None:
        """Pad sequences of ``num_rows`` into a batch; none at all makes one that counts nothing."""
        count = max(len(sequences), 1)
        longest = max((len(sequence) for sequence in sequences), default=2)
        ids = torch.full((count, num_rows, longest), pad)
        weights = torch.zeros(count, num_rows, longest)
        for number, sequence in enumerate(sequences):
            ids[number, :, : len(sequence)] = sequence.ids
            weights[number, :, : len(sequence)] = sequence.loss_weights
        # The columns after the first, one below the other: [B * S, R].
        targets = ids[:, :, 1:].transpose(1, 2).reshape(-1, num_rows)
        weights = weights[:, :, 1:].transpose(1, 2).reshape(-1, num_rows)
        counted = (weights > 0).any(dim=1).nonzero().flatten()
        self.ids = ids[:, :, :-1].contiguous()
        """What is read, int64 [B, R, S]."""
        self.select = counted
        """Positions that predict something that counts, into the flattened B * S, int64 [N]."""
        self.targets = targets[counted]
        """The columns that they predict, int64 [N, R]."""
        self.weights = weights[counted]
        """How much each id of them counts, float32 [N, R]."""
        self.num_positions = sum(len(sequence) for sequence in sequences)
        """LM positions without padding."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> None:
        self.ids = self.ids.to(device, non_blocking=non_blocking)
        self.select = self.select.to(device, non_blocking=non_blocking)
        self.targets = self.targets.to(device, non_blocking=non_blocking)
        self.weights = self.weights.to(device, non_blocking=non_blocking)
