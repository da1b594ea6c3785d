"""What waits for a client to read it: bounded, and rid of sound that nobody shall hear."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from speechlm.errors import SpeechLMError


class SlowClientError(SpeechLMError):
    """More waits for the client than it may."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    text: str
    response_id: str | None
    sound_bytes: int


class Outbox:
    """Texts in their order, for one reader.

    Args:
        max_bytes: Of all that waits.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiting] = deque()
        self._some = asyncio.Event()
        self.num_bytes = 0

    def put(self, text: str, response_id: str | None = None, sound_bytes: int = 0) -> None:
        """Queue a text.

        Args:
            text: The event.
            response_id: Whose sound it is; None for other events, which are never dropped.
            sound_bytes: How much sound.

        Raises:
            SlowClientError: The limit is reached.
        """
        self.num_bytes += len(text)
        if self.num_bytes > self._max_bytes:
            raise SlowClientError(
                f"expected a client that reads, got {self.num_bytes} bytes that wait for it, "
                f"{self._max_bytes} allowed; read faster"
            )
        self._waiting.append(_Waiting(text, response_id, sound_bytes))
        self._some.set()

    async def get(self) -> str:
        """The next text, waiting for one."""
        while not self._waiting:
            self._some.clear()
            await self._some.wait()
        one = self._waiting.popleft()
        self.num_bytes -= len(one.text)
        return one.text

    def drop_sound(self) -> dict[str, int]:
        """Take all sound out of the queue.

        Returns:
            How much it was of each answer, bytes of sound.
        """
        kept: deque[_Waiting] = deque()
        dropped: dict[str, int] = {}
        for one in self._waiting:
            if one.response_id is None:
                kept.append(one)
            else:
                dropped[one.response_id] = dropped.get(one.response_id, 0) + one.sound_bytes
                self.num_bytes -= len(one.text)
        self._waiting = kept
        return dropped

    def __len__(self) -> int:
        return len(self._waiting)
