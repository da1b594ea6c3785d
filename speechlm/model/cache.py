"""What a decoder remembers of the positions it has read, so that each is computed once."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer for a batch of sequences of unequal length.

    Row ``b`` owns the slots ``0 .. lengths[b] - 1``. What a right-padded batch writes beyond
    a row's length is never read: it is masked until the row's own later positions overwrite it.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate room for ``capacity`` positions a row."""
        shape = (num_layers, batch_size, num_kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        """float [layers, B, kv_heads, capacity, head_dim]."""
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        """Positions read of each row, int64 [B]."""

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def positions(self, count: int) -> Tensor:
        """Where the next ``count`` positions of each row go, int64 [B, count]."""
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def write(
        self, layer: int, positions: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values and give all that any row has so far.

        Args:
            layer: Which layer's.
            positions: Slots, int64 [B, S].
            keys: float [B, kv_heads, S, head_dim].
            values: The same.

        Returns:
            Keys and values, float [B, kv_heads, longest row, head_dim].
        """
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        # Index arrays around a slice put their own axes first: [B, S, kv_heads, head_dim].
        self.keys[layer][rows, :, positions] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, positions] = values.transpose(1, 2).to(self.values.dtype)
        longest = int(positions.max()) + 1
        return self.keys[layer][:, :, :longest], self.values[layer][:, :, :longest]

    def advance(self, counts: Tensor) -> None:
        """Count positions as read: int64 [B], without a row's padding."""
        self.lengths = self.lengths + counts

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows only, int64 [B'], e.g. those not finished."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.lengths = self.lengths[rows]
