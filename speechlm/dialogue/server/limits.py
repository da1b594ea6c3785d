"""As many callers as the server is set to: the others are refused at once, or wait in a queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from speechlm.dialogue.messages import Command, Event, ResponseEnded, ResponseStarted, Samples
from speechlm.dialogue.server.metrics import Metrics
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.service import (
    BundleInfo,
    Busy,
    DialogueService,
    Session,
    SpeechRequest,
)
from speechlm.dialogue.settings import SessionSettings


class LimitedService:
    """A :class:`DialogueService` that lets in so many at once, and none once it drains.

    Reading aloud and transcribing take the place of a session for as long as they last.
    """

    def __init__(
        self, service: DialogueService, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self._service, self._settings, self._metrics = service, settings, metrics
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._inside = 0
        self._answering: set[object] = set()
        self._draining = False

    @property
    def info(self) -> BundleInfo:
        return self._service.info

    @property
    def num_sessions(self) -> int:
        return self._inside

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def answering(self) -> bool:
        """Whether an answer is being given: what a server that drains waits for."""
        return bool(self._answering)

    async def open(self, settings: SessionSettings) -> Session:
        await self._enter()
        try:
            return _LimitedSession(await self._service.open(settings), self)
        except Busy as busy:
            self.leave()
            self._metrics.refused(busy.code)
            raise
        except BaseException:
            self.leave()
            raise

    async def probe(self) -> float:
        return await self._service.probe()

    async def speak(self, request: SpeechRequest) -> AsyncIterator[Samples]:
        async with self._place():
            async for samples in self._service.speak(request):
                yield samples

    async def transcribe(self, samples: Samples, sample_rate: int) -> str:
        async with self._place():
            return await self._service.transcribe(samples, sample_rate)

    def drain(self) -> None:
        """Let nobody in any more; those who wait are told so."""
        self._draining = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(_draining())
        self._waiting.clear()

    def leave(self) -> None:
        """Give a place to who has waited longest, or back."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._inside -= 1

    def note(self, who: object, *, answering: bool) -> None:
        if answering:
            self._answering.add(who)
        else:
            self._answering.discard(who)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        await self._enter()
        work = object()
        self.note(work, answering=True)
        try:
            yield
        finally:
            self.note(work, answering=False)
            self.leave()

    async def _enter(self) -> None:
        try:
            if self._draining:
                raise _draining()
            if self._inside < self._settings.max_sessions:
                self._inside += 1
                return
            await self._wait()
        except Busy as busy:
            self._metrics.refused(busy.code)
            raise

    async def _wait(self) -> None:
        settings, place = self._settings, len(self._waiting) + 1
        if place > settings.queue_size:
            queue = f", and {settings.queue_size} wait" if settings.queue_size else ""
            raise Busy(
                f"all {settings.max_sessions} sessions are taken{queue}; try again later",
                "session_limit_reached",
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(settings.queue_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # its turn came in the moment in which it went
            if not isinstance(error, TimeoutError):
                raise
            now = 1 + self._waiting.index(waiter) if waiter in self._waiting else 1
            raise Busy(
                f"no session came free within {settings.queue_s:g} s; this caller had come from "
                f"place {place} of the queue to {now}; try again later",
                "session_limit_reached",
            ) from None
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)


class _LimitedSession:
    """A session that gives its place back when it is closed."""

    def __init__(self, session: Session, service: LimitedService) -> None:
        self._session, self._service, self._open = session, service, True

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def backlog_s(self) -> float:
        return self._session.backlog_s

    def send(self, command: Command) -> None:
        self._session.send(command)

    async def events(self) -> AsyncIterator[Event]:
        async for event in self._session.events():
            if isinstance(event, ResponseStarted):
                self._service.note(self, answering=True)
            yield event
            if isinstance(event, ResponseEnded):
                self._service.note(self, answering=False)

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._service.note(self, answering=False)
        try:
            await self._session.close()
        finally:
            self._service.leave()


def _draining() -> Busy:
    return Busy("the server is being stopped; try again in a while", "draining")
