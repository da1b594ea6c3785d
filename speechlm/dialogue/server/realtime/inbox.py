"""What a client sent and the session has not taken yet: bounded, and exact about what was lost."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

import numpy as np

from speechlm.dialogue.messages import Command, Hear

PIECE_S = 0.25
"""Longer sound is cut, so that the session is never handed much at once."""


class Inbox:
    """Commands in their order; beyond the limit the oldest sound goes, and nothing else.

    The session counts the samples that it heard. What was dropped before them came from the
    client too: :meth:`sent_at` gives the client's count, which its events must tell.
    """

    def __init__(self) -> None:
        self._waiting: deque[Command] = deque()
        self.num_others = 0
        """Commands that wait and are no sound."""
        self.waiting_samples = 0
        self.dropped_samples = 0
        self._taken_samples = 0
        self._gaps_at: list[int] = []
        self._gaps_total: list[int] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, command: Command, *, rate: int, max_samples: int) -> int:
        """Queue a command.

        Args:
            command: Sound is cut in pieces.
            rate: Of the session's input, Hz.
            max_samples: Sound that may wait.

        Returns:
            Samples that had to be dropped for it.
        """
        if not isinstance(command, Hear):
            self._waiting.append(command)
            self.num_others += 1
            return 0
        piece = int(PIECE_S * rate)
        samples = command.samples
        self.waiting_samples += len(samples)
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, Hear) and len(last.samples) + len(samples) <= piece:
            # Clients that send a few samples at a time shall not fill the memory with pieces.
            self._waiting[-1] = Hear(samples=np.concatenate([last.samples, samples]))
        else:
            for begin in range(0, len(samples), piece):
                self._waiting.append(Hear(samples=samples[begin : begin + piece]))
        return self._drop(self.waiting_samples - max(0, max_samples))

    def take(self) -> Command | None:
        """The next command; None when nothing waits."""
        if not self._waiting:
            return None
        command = self._waiting.popleft()
        if isinstance(command, Hear):
            self.waiting_samples -= len(command.samples)
            self._taken_samples += len(command.samples)
        else:
            self.num_others -= 1
        return command

    def holds(self, kind: type[Command]) -> bool:
        """Whether a command of that kind waits."""
        return any(isinstance(command, kind) for command in self._waiting)

    def sent_at(self, heard_at: int) -> int:
        """The sample of the client's count that the session's is."""
        place = bisect_right(self._gaps_at, heard_at)
        return heard_at + (self._gaps_total[place - 1] if place else 0)

    def _drop(self, too_many: int) -> int:
        dropped = 0
        kept: list[Command] = []
        while dropped < too_many:
            command = self._waiting.popleft()
            if isinstance(command, Hear):
                dropped += len(command.samples)
            else:
                kept.append(command)
        self._waiting.extendleft(reversed(kept))
        if dropped:
            self.waiting_samples -= dropped
            self.dropped_samples += dropped
            if self._gaps_at and self._gaps_at[-1] == self._taken_samples:
                self._gaps_total[-1] = self.dropped_samples
            else:
                self._gaps_at.append(self._taken_samples)
                self._gaps_total.append(self.dropped_samples)
        return dropped
