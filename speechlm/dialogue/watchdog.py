"""An answer that goes on without saying anything."""

from __future__ import annotations

import torch
from torch import Tensor

SILENT = 10 ** (-55 / 20)
"""Sound whose root mean square is below this says nothing."""
SILENCE_S = 3.0
"""An answer that has been silent for so long has ended."""
LOOP_S = 3.0
"""An answer that has said the same for so long goes round in circles."""
LOOP_PERIOD_S = 0.8
"""Of what is repeated, at most; what people repeat is longer, or ends."""


class Watchdog:
    """Notices an answer that goes on without saying anything."""

    def __init__(self, frame_rate: float, sample_rate: int) -> None:
        self._frame_rate = frame_rate
        self._sample_rate = sample_rate
        self._silent_s = 0.0

    def why(self, codes: Tensor, sound: Tensor) -> str | None:
        """Look at all units int64 [K, F] and at the newest sound float32 [n].

        Returns:
            ``silence`` or ``loop`` where it should end.
        """
        if len(sound):
            loud = float(sound.square().mean().sqrt()) >= SILENT
            self._silent_s = 0.0 if loud else self._silent_s + len(sound) / self._sample_rate
        if self._silent_s >= SILENCE_S:
            return "silence"
        count = round(LOOP_S * self._frame_rate)
        if codes.shape[1] < count:
            return None
        last = codes[:, -count:]
        for period in range(1, round(LOOP_PERIOD_S * self._frame_rate) + 1):
            if torch.equal(last[:, period:], last[:, :-period]):
                return "loop"
        return None
