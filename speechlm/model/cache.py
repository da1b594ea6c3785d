"""What a decoder remembers of the positions it has read, so that each is computed once.

One preallocated store of keys and values is handed out in blocks. A sequence owns a run of
neighbouring blocks, so attention reads its keys in place, and sequences of any lengths go
through the model together without padding: a step is a list of ``(sequence, how many of its
positions come next)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlm.errors import InputError
from speechlm.model.architecture import DecoderConfig
from speechlm.model.rotary import frequencies, rotate

BLOCK = 32
"""Positions a block."""


@dataclass(kw_only=True, slots=True, eq=False)
class Region:
    """The slots of one sequence: ``start .. start + capacity``, of which ``length`` are filled."""

    start: int
    capacity: int
    length: int = 0


class KVCache:
    """Keys and values of every layer, float [kv_heads, positions, head_dim] each."""

    def __init__(
        self,
        config: DecoderConfig,
        num_positions: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate room for ``num_positions`` positions of all sequences together."""
        num_blocks = -(-num_positions // BLOCK)
        shape = (config.num_kv_heads, num_blocks * BLOCK, config.head_dim)
        self.config = config
        self.keys = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)
        ]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self._free = [(0, num_blocks * BLOCK)]

    @property
    def num_positions(self) -> int:
        return self.keys[0].shape[1]

    def reserve(self, num_positions: int) -> Region | None:
        """Take the first run of free blocks that holds as many positions; None for none."""
        wanted = -(-num_positions // BLOCK) * BLOCK
        for index, (start, size) in enumerate(self._free):
            if size >= wanted:
                self._free[index : index + 1] = (
                    [(start + wanted, size - wanted)] if size > wanted else []
                )
                return Region(start=start, capacity=wanted)
        return None

    def release(self, region: Region) -> None:
        """Give a sequence's blocks back; neighbouring free runs become one."""
        runs = sorted([*self._free, (region.start, region.capacity)])
        self._free = []
        for start, size in runs:
            if self._free and sum(self._free[-1]) == start:
                self._free[-1] = (self._free[-1][0], self._free[-1][1] + size)
            else:
                self._free.append((start, size))

    def copy(self, source: Region, target: Region) -> None:
        """Let ``target`` begin as ``source`` stands: one prompt, several continuations."""
        taken = slice(source.start, source.start + source.length)
        given = slice(target.start, target.start + source.length)
        for store in (*self.keys, *self.values):
            store[:, given] = store[:, taken]
        target.length = source.length

    def forget(self, region: Region, *, keep_first: int, count: int) -> None:
        """Drop the oldest positions but the very first, and close the gap.

        What stays is renumbered: keys turn back by ``count`` positions, so that a
        conversation may go on for ever within the positions that the model knows.

        Source:
            Attention sinks: Xiao et al. 2023, arXiv:2309.17453.
        """
        config = self.config
        first = region.start + keep_first
        kept = slice(first + count, region.start + region.length)
        room = slice(first, region.start + region.length - count)
        turn = -count * frequencies(config.rotary_dim, config.rope_theta, config.rope_scaling)
        cos, sin = turn.cos(), turn.sin()
        cos, sin = torch.cat([cos, cos]), torch.cat([-sin, sin])
        for keys, values in zip(self.keys, self.values, strict=True):
            # The product is a new tensor: source and target overlap.
            keys[:, room] = rotate(keys[:, kept].float(), cos.to(keys.device), sin.to(keys.device))
            values[:, room] = values[:, kept].clone()
        region.length -= count

    def step(self, rows: Sequence[tuple[Region, int]]) -> CacheStep:
        """Say whose next positions the model is about to read, and how many of each.

        Raises:
            InputError: A sequence does not fit into what it reserved.
        """
        return CacheStep(self, rows)


class CacheStep:
    """One call of the model: the next positions of some sequences, one after another, [N]."""

    def __init__(self, cache: KVCache, rows: Sequence[tuple[Region, int]]) -> None:
        self._cache = cache
        self._rows = [(r.start, r.length, count) for r, count in rows]
        self.longest = 0
        """Positions of the longest sequence after this step."""
        positions: list[int] = []
        slots: list[int] = []
        for region, count in rows:
            end = region.length + count
            if end > region.capacity:
                raise InputError(
                    f"expected at most {region.capacity} positions in the cache, got {end}"
                )
            self.longest = max(self.longest, end)
            positions.extend(range(region.length, end))
            slots.extend(range(region.start + region.length, region.start + end))
            region.length = end
        device = cache.keys[0].device
        self.positions = torch.tensor(positions, device=device)
        """Where each stands in its sequence, int64 [N]."""
        self._slots = torch.tensor(slots, device=device)
        # One sequence's slots are neighbours, and a run is copied faster than an index.
        self._run = (slots[0], len(slots)) if len(rows) == 1 else None
        self._counts = [count for _, count in rows]
        self._masks = [self._mask(before, count) for _, before, count in self._rows]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Remember new keys and values, and let each query see its own sequence up to itself.

        Args:
            layer: Which layer's.
            q: float [N, heads, head_dim].
            k: float [N, kv_heads, head_dim].
            v: The same.

        Returns:
            float [N, heads * head_dim].
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        if self._run is not None:
            keys.narrow(1, *self._run).copy_(k)
            values.narrow(1, *self._run).copy_(v)
        else:
            keys.index_copy_(1, self._slots, k.to(keys.dtype))
            values.index_copy_(1, self._slots, v.to(values.dtype))
        # [N, kv_heads, group, head_dim]
        q = q.to(keys.dtype).view(q.shape[0], keys.shape[0], -1, q.shape[2])
        parts = torch.split(q, self._counts) if len(self._counts) > 1 else (q,)
        outputs = [
            self._attend_row(part, keys, values, row, mask)
            for part, row, mask in zip(parts, self._rows, self._masks, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_row(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        row: tuple[int, int, int],
        mask: Tensor | None,
    ) -> Tensor:
        start, before, count = row
        seen = before + count
        skipped = self._skipped(before, count)
        k = keys.narrow(1, start + skipped, seen - skipped)
        v = values.narrow(1, start + skipped, seen - skipped)
        if count == 1:
            # The queries that share a key head are rows of one product.
            return F.scaled_dot_product_attention(q, k[None], v[None]).view(1, -1)
        # [kv_heads, group, count, head_dim] against keys that a group shares without a copy.
        group = q.shape[2]
        attended = F.scaled_dot_product_attention(
            q.permute(1, 2, 0, 3),
            k[:, None].expand(-1, group, -1, -1),
            v[:, None].expand(-1, group, -1, -1),
            attn_mask=mask,
            is_causal=mask is None,
        )
        return attended.permute(2, 0, 1, 3).flatten(1)

    def _skipped(self, before: int, count: int) -> int:
        """Leading positions that a sliding window hides from every query of a row."""
        window = self._cache.config.sliding_window
        return 0 if window is None else max(0, before + 1 - window)

    def _mask(self, before: int, count: int) -> Tensor | None:
        """Which keys the queries of a row see, bool [count, keys]; None for plainly causal."""
        window = self._cache.config.sliding_window
        if count == 1 or (before == 0 and (window is None or count <= window)):
            return None
        device = self._cache.keys[0].device
        skipped = self._skipped(before, count)
        keys = torch.arange(skipped, before + count, device=device)
        queries = torch.arange(before, before + count, device=device)[:, None]
        mask = keys <= queries
        return mask if window is None else mask & (keys > queries - window)
