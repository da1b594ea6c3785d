"""One sequence in a cache of its own: what comes out depends on nothing but its columns.

A sequence that may outlast its window is read in parts whose ends are fixed, one of them where
the window is full. So a reader may keep what it has read up to such an end and go on from there,
and gives what reading everything anew would give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechlm.generation.request import SINKS
from speechlm.model.cache import KVCache, Region
from speechlm.model.decoder import Decoder

PART = 32
"""Columns that are read at once where there is a window: short, as others wait meanwhile."""


class AloneReader:
    """Reads one sequence's columns, each once."""

    def __init__(
        self,
        decoder: Decoder,
        window: int,
        *,
        part: int,
        num_positions: int,
        dtype: torch.dtype,
    ) -> None:
        """Allocate a cache.

        Args:
            decoder: Ready to decode.
            window: Positions that are remembered; the oldest are forgotten when it is full.
            part: Most columns that are read at once.
            num_positions: How many will be needed, at most ``window``.
            dtype: Of keys and values.
        """
        self._decoder = decoder
        self._window = window
        self._part = part
        self._region = Region(start=0, capacity=window)
        self._cache = KVCache(decoder.config, num_positions, device=decoder.device, dtype=dtype)

    @property
    def next_part(self) -> int:
        """Columns until the next end of a part."""
        self._make_room()
        return (self._window - self._region.length) % self._part or self._part

    def read(self, columns: Tensor) -> Tensor:
        """The state after the next columns, int64 [R, n], n >= 1: float [1, D]."""
        hidden = None
        while columns.shape[1]:
            part = columns[:, : self.next_part]
            columns = columns[:, part.shape[1] :]
            hidden = self._decoder.hidden(
                part[None].to(self._decoder.device),
                cache=self._cache.step([(self._region, part.shape[1])]),
                select=torch.tensor([part.shape[1] - 1], device=self._decoder.device),
            )
        assert hidden is not None
        return hidden

    def look(self, columns: Tensor) -> Tensor:
        """The same of at most :attr:`next_part` columns, and stand where one stood."""
        assert columns.shape[1] <= self.next_part
        length = self._region.length
        hidden = self.read(columns)
        self._region.length = length
        return hidden

    def _make_room(self) -> None:
        """Forget the oldest positions of a window that is full."""
        if self._region.length == self._window:
            self._cache.forget(self._region, keep_first=SINKS, count=dropped(self._window))


def dropped(window: int) -> int:
    """How many positions a full window forgets at once: a quarter, so that it is seldom."""
    return max(1, (window - SINKS) // 4)
