"""Another rate for sound that comes in pieces, the same however it is cut."""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
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
        from torchaudio.transforms import Resample

        self._kernel = Resample(self._old, self._new).kernel
        """float32 [new, 1, 2 * context + old]: what a period of the ratio becomes."""
        self._context = (self._kernel.shape[-1] - self._old) // 2
        self._block = self._old * max(1, round(BLOCK_S * rate / self._old))
        self.delay = self._block - 1 + self._context
        self._held = torch.zeros(self._context)
        self._num_pushed = self._num_given = 0

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] at the old rate; give what is certain at the new one, float32 [m]."""
        if self._same:
            return samples
        self._num_pushed += len(samples)
        self._held = torch.cat([self._held, samples])
        done = [torch.zeros(0)]
        size = 2 * self._context + self._block
        while len(self._held) >= size:
            block = F.conv1d(self._held[None, None, :size], self._kernel, stride=self._old)
            done.append(block[0].T.reshape(-1))
            self._held = self._held[self._block :]
        given = torch.cat(done)
        self._num_given += len(given)
        return given

    def finish(self) -> Tensor:
        """Give the rest, float32 [m], as if silence followed: in all ceil(T * new / old)."""
        if self._same:
            return torch.zeros(0)
        missing = -(-self._num_pushed * self._new // self._old) - self._num_given
        return self.push(torch.zeros(self._context + self._block))[:missing]
