"""A dialogue service whose model lives in a process of its own, watched and built anew.

The server's process only moves bytes. A worker that was killed, or that has not answered for a
while, is replaced: its conversations end with ``Failed``, new ones wait for the new worker or are
refused, and the server goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from speechlm.dialogue.conversations import Conversations, Down, Up
from speechlm.dialogue.service import BundleInfo, Busy
from speechlm.errors import SpeechLMError

LOG = logging.getLogger(__name__)
STUCK_S = 10.0
"""A worker that has been silent for so long is replaced."""
BEAT_S = 1.0
"""It says at least so often that it lives."""
START_S = 120.0
"""So long may it take to load a bundle."""
RESTART_S = 1.0
"""Between two tries to build a worker."""


class WorkerService(Conversations):
    """See :class:`speechlm.dialogue.service.DialogueService`.

    >>> async with WorkerService(Path("runs/demo/bundle")) as service:  # doctest: +SKIP
    ...     session = await service.open(SessionSettings())
    """

    def __init__(
        self,
        bundle: Path,
        *,
        max_sessions: int = 8,
        weights: str = "float32",
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        """
        Args:
            bundle: Its folder.
            max_sessions: Conversations at once.
            weights: What the LM decodes with.
            device: Where the LM runs.
            threads: Of the model's computations; 0 for one where the LM is small, which waits
                for no other, else as many as there are cores.
        """
        super().__init__(None, max_sessions)  # type: ignore[arg-type]  # known once it has started
        self._options = (bundle, max_sessions, weights, device, threads)
        self._process: Any = None
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop
        self._last_beat = 0.0
        self._ready = False
        self._closed = False
        self._supervisor: asyncio.Task[None] | None = None
        self._outbox: queue.SimpleQueue[Down | None] = queue.SimpleQueue()
        self.num_restarts = 0

    def start(self) -> None:
        """Load the bundle and wait until it can be talked with.

        Raises:
            SpeechLMError: The bundle cannot be used.
        """
        if self._process is None:
            self._build()

    def close(self) -> None:
        """End the worker."""
        self._closed = True
        if self._supervisor is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._supervisor.cancel)
        self._end_process()

    async def __aenter__(self) -> WorkerService:
        await asyncio.to_thread(self.start)
        self._check_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the worker's process."""
        return None if self._process is None else self._process.pid

    @property
    def ready(self) -> bool:
        return self._ready

    def _check_ready(self) -> None:
        if self._supervisor is None:
            self._loop = asyncio.get_running_loop()
            self._supervisor = self._loop.create_task(self._supervise())
            self._talk_to_worker()
        if not self._ready:
            raise Busy("the model is being loaded anew; try again soon", "worker_unavailable")

    def _send(self, message: Down) -> None:
        self._outbox.put(message)

    def _build(self) -> None:
        """Make a worker and wait until it has loaded the bundle."""
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=run_worker, args=(there, *self._options), name="speechlm-worker", daemon=True
        )
        process.start()
        there.close()
        self._process, self._connection, self._outbox = process, here, queue.SimpleQueue()
        first = self._first_word()
        if isinstance(first, BaseException):
            self._end_process()
            here.close()
            raise first
        self._info = first
        self._last_beat = time.monotonic()
        self._ready = True

    def _first_word(self) -> BundleInfo | BaseException:
        """What the worker says when it has loaded the bundle, or why it could not."""
        assert self._connection is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and not self._closed:
            if self._connection.poll(0.1):
                try:
                    said: BundleInfo | BaseException = self._connection.recv()
                except EOFError:
                    break
                return said
            if not self._process.is_alive():
                break
        return SpeechLMError("the process that shall run the model ended while it was loading")

    def _talk_to_worker(self) -> None:
        """Begin to hand messages to and fro."""
        connection, outbox = self._connection, self._outbox
        speaking = threading.Thread(target=self._speak, args=(connection, outbox), daemon=True)
        speaking.start()
        listening = (connection, outbox, speaking)
        threading.Thread(target=self._listen, args=listening, daemon=True).start()

    def _speak(self, connection: Connection, outbox: queue.SimpleQueue[Down | None]) -> None:
        """In a thread, for a worker that does not listen lets its sender wait: tell it all."""
        # A worker that is gone is noticed by the supervisor.
        with contextlib.suppress(OSError, ValueError):
            while (message := outbox.get()) is not None:
                connection.send(message)

    def _listen(
        self,
        connection: Connection,
        outbox: queue.SimpleQueue[Down | None],
        speaking: threading.Thread,
    ) -> None:
        """In a thread: hand over what the worker says, until it is gone."""
        with contextlib.suppress(EOFError, OSError, RuntimeError):
            while True:
                messages = connection.recv()
                self._last_beat = time.monotonic()
                if messages:
                    self._loop.call_soon_threadsafe(self._deliver_all, connection, messages)
        outbox.put(None)
        speaking.join()
        connection.close()

    def _deliver_all(self, connection: Connection, messages: Sequence[Up]) -> None:
        if connection is self._connection:
            for message in messages:
                self._deliver(message)

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            died = not self._process.is_alive()
            stuck = time.monotonic() - self._last_beat > STUCK_S
            if died or stuck:
                what = "died" if died else f"has not answered for {STUCK_S:.0f} s"
                LOG.error("the worker %s; building a new one", what)
                await self._replace(what)

    async def _replace(self, what: str) -> None:
        self._ready = False
        self._end_process()
        self._fail_all("worker_lost", f"the process that ran the model {what}; connect again")
        self.num_restarts += 1
        while True:
            try:
                await asyncio.to_thread(self._build)
                self._talk_to_worker()
                return
            except Exception as error:
                if self._closed:
                    return
                LOG.error("no worker: %s", error)
                await asyncio.sleep(RESTART_S)

    def _end_process(self) -> None:
        self._ready = False
        self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.join()


def run_worker(
    connection: Connection,
    bundle: Path,
    max_sessions: int,
    weights: str,
    device: str,
    threads: int,
) -> None:
    """The worker's process: load, then run sessions until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from speechlm.data.pool import leave_with_parent

    threading.Thread(target=leave_with_parent, daemon=True).start()
    from speechlm.bundle import SpeechLM
    from speechlm.dialogue.conversations import describe
    from speechlm.dialogue.running import choose_threads, run_hub, warm_up

    try:
        model = SpeechLM.from_pretrained(bundle, device)
        choose_threads(model, threads)
        model.weights = weights  # type: ignore[assignment]
        warm_up(model)
    except SpeechLMError as error:
        connection.send(error)
        return
    connection.send(describe(model, os.path.basename(os.path.abspath(bundle))))
    outbox: list[Up] = []
    last = time.monotonic()

    def flush() -> None:
        nonlocal last
        now = time.monotonic()
        if outbox or now - last > BEAT_S:
            connection.send(outbox)
            outbox.clear()
            last = now

    def receive(timeout: float) -> list[Down] | None:
        flush()
        found: list[Down] = []
        try:
            if connection.poll(timeout):
                found.append(connection.recv())
                while len(found) < 256 and connection.poll(0):
                    found.append(connection.recv())
        except EOFError:
            return None
        return found

    # What was loaded stays: looking through all of it for garbage would take as long as frames do.
    gc.freeze()
    run_hub(model, receive, outbox.append, flush, max_sessions=max_sessions)
