"""Windows on a fixed grid: how models that see the future give the same to a stream and a whole.

Where a window begins and ends hangs on the recording alone, never on how it was cut when it was
pushed. So the model sees the very same tensors either way, and its output is equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Window:
    """A stretch to compute, and which part of it the result is wanted of."""

    content: Tensor
    """[..., n], with what stands before and after as far as it is needed and there is any."""
    skip: int
    """Elements at its beginning that are there as context only."""
    keep: int
    """Elements after these that it stands for; what follows them is context again."""


class Windows:
    """Cuts what is pushed, along its last axis, into windows that stand side by side.

    The last one takes in all that is left, at most ``size + after``: it is as long as what it
    holds, so a recording of that length is a single window, and nothing is padded.
    """

    def __init__(
        self, size: int, *, before: int = 0, after: int = 0, first: int | None = None
    ) -> None:
        """Begin.

        Args:
            size: Elements that a window stands for.
            before: Elements of context on its left, fewer at the beginning.
            after: Elements of context on its right, none at the end.
            first: Size of the first window where it is another.
        """
        self._size, self._before, self._after = size, before, after
        self._next = size if first is None else first
        self._parts: list[Tensor] = []
        """What is held: the context on the left, and all that has not been given yet."""
        self._held = 0
        self._skip = 0
        """How much of what is held is context on the left."""

    def push(self, part: Tensor) -> Iterator[Window]:
        """Take [..., n]; give every window whose right context is there."""
        # A copy: the caller may fill the same buffer again.
        self._parts.append(part.clone())
        self._held += part.shape[-1]
        if self._held < self._skip + self._next + self._after:
            if len(self._parts) > 256:
                self._parts = [torch.cat(self._parts, dim=-1)]
            return
        held = torch.cat(self._parts, dim=-1)
        start = 0
        while held.shape[-1] - start >= (reach := self._skip + self._next + self._after):
            # A copy, so that how the tensor lies in memory hangs on the window alone too.
            content = held[..., start : start + reach].clone()
            yield Window(content=content, skip=self._skip, keep=self._next)
            passed = self._skip + self._next
            self._skip = min(self._before, passed)
            start += passed - self._skip
            self._next = self._size
        # A copy: a view would keep all that was ever pushed.
        self._parts = [held[..., start:].clone()]
        self._held = held.shape[-1] - start

    def finish(self) -> Window | None:
        """Give what is left as one window; None where nothing is."""
        keep = self._held - self._skip
        if keep == 0:
            return None
        content = torch.cat(self._parts, dim=-1)
        return Window(content=content, skip=self._skip, keep=keep)


class WindowedStream:
    """A stream whose output is computed window by window, each as soon as it is whole.

    See :class:`speechlm.protocols.TokenizerStream`.
    """

    def __init__(
        self, windows: Windows, compute: Callable[[Window], Tensor], nothing: Tensor
    ) -> None:
        """Begin.

        Args:
            windows: Cuts what is pushed.
            compute: Gives the output of what a window stands for, [..., m].
            nothing: What such an output is where there is none, [..., 0].
        """
        self._windows, self._compute, self._nothing = windows, compute, nothing

    def push(self, part: Tensor) -> Tensor:
        """Take [..., n]; give the output that is now certain, [..., m]."""
        results = [self._compute(window) for window in self._windows.push(part)]
        return torch.cat([self._nothing, *results], dim=-1)

    def finish(self) -> Tensor:
        """Give the output still held back, [..., m]."""
        last = self._windows.finish()
        return self._nothing if last is None else self._compute(last)
