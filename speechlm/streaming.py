"""What streams that equal the whole are made of: causal convolutions with a state, and blocks.

Kernels give other last bits for other shapes, so a stream cannot equal the whole by luck: both
are computed in the same blocks of a fixed size, one after another, with the same state.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[nn.Module, Tensor]
"""What each layer of a model remembers between blocks; a new stream starts with an empty one."""


class CausalConv1d(nn.Conv1d):
    """A convolution that sees no future: zeros, or the stream's past, stand before its input."""

    def forward(self, input: Tensor, state: State | None = None) -> Tensor:
        """Convolve.

        Args:
            input: float [B, C, T], T a multiple of the stride where there is a state.
            state: The stream's; None for a whole input.

        Returns:
            float [B, C', ceil(T / stride)].
        """
        (kernel,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        reach = (kernel - 1) * dilation + 1 - stride
        past = None if state is None else state.get(self)
        if past is None:
            past = input.new_zeros(*input.shape[:2], reach)
        input = torch.cat([past, input], dim=2)
        if state is not None:
            state[self] = input[..., input.shape[2] - reach :]
        elif extra := (input.shape[2] - reach) % stride:
            input = F.pad(input, (0, stride - extra))
        return super().forward(input)


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """Upsampling that sees no future; what reaches over the end goes into the stream's next."""

    def forward(  # type: ignore[override]
        self, input: Tensor, state: State | None = None
    ) -> Tensor:
        """Upsample float [B, C, T] to [B, C', T * stride]."""
        (stride,), length = self.stride, input.shape[2] * self.stride[0]
        result = F.conv_transpose1d(
            input, self.weight, None, stride=stride, groups=self.groups, dilation=self.dilation
        )
        result, tail = result[..., :length], result[..., length:]
        if state is not None:
            before = state.get(self)
            if before is not None and before.shape[2]:
                # A block may be shorter than what the one before it left behind.
                both = max(before.shape[2], length)
                result = F.pad(result, (0, both - length)) + F.pad(
                    before, (0, both - before.shape[2])
                )
                carried, result = result[..., length:], result[..., :length]
                tail = tail + F.pad(carried, (0, tail.shape[2] - carried.shape[2]))
            state[self] = tail
        return result if self.bias is None else result + self.bias[:, None]


class Blocks:
    """Cuts what is pushed, along its last axis, into blocks of one size."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: Tensor | None = None

    def push(self, part: Tensor) -> Iterator[Tensor]:
        """Take [..., n]; give every whole block, [..., size]."""
        held = part if self._held is None else torch.cat([self._held, part], dim=-1)
        whole = held.shape[-1] // self._size * self._size
        # A copy: a view would keep all that was ever pushed.
        self._held = held[..., whole:].clone()
        if whole:
            yield from torch.split(held[..., :whole], self._size, dim=-1)

    def finish(self) -> tuple[Tensor, int] | None:
        """Give the last block, padded with zeros to its size, and how much of it is real."""
        held, self._held = self._held, None
        if held is None or held.shape[-1] == 0:
            return None
        return F.pad(held, (0, self._size - held.shape[-1])), held.shape[-1]
