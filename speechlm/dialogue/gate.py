"""Endless sound cut into answers: where a model that never stops is heard to speak."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

SILENCE_DB = -45.0
"""Quieter than this, of full scale, a frame is silence."""
CLOSE_S = 0.6
"""So much silence ends an answer."""

Verdict = Literal["silence", "opens", "speech", "closes"]


def is_silent(frame: Tensor) -> bool:
    """Whether a frame, float32 [n], is quieter than :data:`SILENCE_DB`."""
    power = float(frame.square().mean()) if len(frame) else 0.0
    return power <= 10 ** (SILENCE_DB / 10)


class Gate:
    """Says of each frame whether it belongs to an answer.

    >>> import torch
    >>> gate = Gate(frame_s=0.3)
    >>> silence, voice = torch.zeros(8), torch.ones(8)
    >>> [gate.hear(frame) for frame in (silence, voice, silence, silence, silence)]
    ['silence', 'opens', 'speech', 'closes', 'silence']
    """

    def __init__(self, frame_s: float) -> None:
        self._patience = max(1, math.ceil(CLOSE_S / frame_s - 1e-9))
        self._silent = 0
        """Frames of silence at the end."""
        self._open = False
        self._hushed = False
        """Nothing opens until there was silence for as long as ends an answer."""

    def hear(self, frame: Tensor) -> Verdict:
        """Take the next frame; one that opens or closes an answer is part of it."""
        self._silent = self._silent + 1 if is_silent(frame) else 0
        rested = self._silent >= self._patience
        if self._hushed:
            self._hushed = not rested
            return "silence"
        if not self._open:
            self._open = self._silent == 0
            return "opens" if self._open else "silence"
        self._open = not rested
        return "closes" if rested else "speech"

    def hush(self) -> None:
        """End the answer here; what the model goes on saying until it rests belongs to none."""
        self._open, self._hushed = False, True

    def split(self) -> None:
        """End the answer here; the next sound opens another."""
        self._open = False
