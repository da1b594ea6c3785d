"""Another rate for sound that comes in pieces, the same however it is cut."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

BLOCK_S = 0.01
"""Sound is resampled by blocks of about this length; one is what may be held back."""


class StreamResampler:
    """Changes the rate of a stream.

    It computes the same blocks whatever comes at once, so the result does not depend on how the
    input is cut; it differs from resampling the whole by rounding only.
    """

    def __init__(self, rate: int, new_rate: int) -> None:
        """From ``rate`` Hz to ``new_rate`` Hz."""
        ratio = Fraction(rate, new_rate)
        self._old, self._new = ratio.numerator, ratio.denominator
        self._same = rate == new_rate
        self.delay = 0
        """Samples at the old rate that it may hold back."""
        if self._same:
            return
        self._weights, self._context, self._block = _weights(self._old, self._new, rate)
        self.delay = self._block - 1 + self._context
        self._held = torch.zeros(self._context)
        self._num_pushed = self._num_given = 0

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] at the old rate; give what is certain at the new one, float32 [m]."""
        if self._same:
            return samples
        self._num_pushed += len(samples)
        self._held = torch.cat([self._held, samples])
        size = len(self._weights)
        count = max(0, (len(self._held) - size) // self._block + 1)
        # Block by block, each in memory of its own: how many come at once, and where they lie,
        # would change the last bits of a product.
        done = [torch.zeros(0)]
        for start in range(0, count * self._block, self._block):
            done.append(self._held[start : start + size].clone() @ self._weights)
        self._held = self._held[count * self._block :]
        given = torch.cat(done)
        self._num_given += len(given)
        return given

    def finish(self) -> Tensor:
        """Give the rest, float32 [m], as if silence followed: in all ceil(T * new / old)."""
        if self._same:
            return torch.zeros(0)
        missing = -(-self._num_pushed * self._new // self._old) - self._num_given
        return self.push(torch.zeros(self._context + self._block))[:missing]


@cache
def _weights(old: int, new: int, rate: int) -> tuple[Tensor, int, int]:
    """What every sample of a block of the old rate, ``rate`` Hz, with what it sees before and
    after, adds to the block's samples of the new one.

    Returns:
        float32 [context + block + context, new block], the context and the block: a product by
        it does what torchaudio's resampling does, at a quarter of the cost for so few samples.
    """
    from torchaudio.transforms import Resample

    resample = Resample(old, new)
    reach = resample.kernel.shape[-1] - old
    # Whole periods of the ratio, so that every block begins in the same phase.
    context = math.ceil(reach / 2 / old) * old
    block = old * max(1, round(BLOCK_S * rate / old))
    first, count = context // old * new, block // old * new
    responses = resample(torch.eye(2 * context + block))
    return responses[:, first : first + count].contiguous(), context, block
