"""A dialogue service in this process: the hub in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence

from speechlm.bundle import SpeechLM
from speechlm.dialogue.conversations import Conversations, Down, Up, describe
from speechlm.dialogue.running import run_hub


class LocalService(Conversations):
    """See :class:`speechlm.dialogue.service.DialogueService`.

    >>> async with LocalService(model) as service:  # doctest: +SKIP
    ...     session = await service.open(SessionSettings())
    """

    def __init__(self, model: SpeechLM, *, name: str = "bundle", max_sessions: int = 8) -> None:
        super().__init__(describe(model, name), max_sessions)
        self._model = model
        self._inbox: queue.SimpleQueue[Down | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="speechlm-hub", daemon=True)

    async def __aenter__(self) -> LocalService:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _check_ready(self) -> None:
        """A thread of this process is always there."""

    def _send(self, message: Down) -> None:
        self._inbox.put(message)

    def _run(self) -> None:
        run_hub(self._model, self._receive, self._say, max_sessions=self._max_sessions)

    def _receive(self, timeout: float) -> Sequence[Down] | None:
        found: list[Down] = []
        try:
            message = self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait()
            while message is not None:
                found.append(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return found
        return None

    def _say(self, message: Up) -> None:
        self._loop.call_soon_threadsafe(self._deliver, message)
