"""Sessions for asyncio, whatever runs the hub: the half that a worker and a thread share."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from speechlm.bundle import SpeechLM
from speechlm.dialogue.messages import (
    Command,
    Configure,
    Event,
    Failed,
    Hear,
    Samples,
    TurnMeasured,
)
from speechlm.dialogue.oneshot import can_speak_text, can_transcribe
from speechlm.dialogue.service import BundleInfo, Busy, SpeechRequest
from speechlm.dialogue.settings import SessionSettings
from speechlm.errors import InputError

PROBE = "probe"
"""The name under which the hub's side is asked for one frame of inference."""
ANSWER_S = 10.0
"""A hub that has not answered for so long is of no use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """To the hub's side: begin a conversation."""

    settings: SessionSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Close:
    """To the hub's side: end it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """From the hub's side: it has begun, or why it cannot."""

    error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """From the hub's side: so many samples were taken in."""

    num_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Speak:
    """To the hub's side: read this aloud."""

    request: SpeechRequest


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WriteDown:
    """To the hub's side: transcribe this."""

    samples: Samples
    sample_rate: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Done:
    """From the hub's side: a piece of work done, and at the end no piece, or why not."""

    piece: Samples | str | None = None
    error: str | None = None


Down = tuple[str, "Command | Open | Close | Speak | WriteDown"]
Up = tuple[str, "Event | Opened | Heard | Done"]


class Conversation:
    """One session as asyncio sees it; see :class:`speechlm.dialogue.service.Session`."""

    def __init__(
        self, name: str, rate: int, send: Callable[[Down], None], forget: Callable[[str], None]
    ) -> None:
        self._name = name
        self._rate = rate
        self._send = send
        self._forget = forget
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._waiting = 0
        """Samples sent and not heard yet."""
        self._silent = True
        """Whether no sound was sent yet."""
        self._open = True
        self.opened: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    @property
    def id(self) -> str:
        return self._name

    @property
    def backlog_s(self) -> float:
        return self._waiting / self._rate

    def send(self, command: Command) -> None:
        if self._open:
            if isinstance(command, Hear):
                self._waiting += len(command.samples)
                self._silent = False
            elif isinstance(command, Configure) and self._silent:
                self._rate = command.settings.input_rate
            self._send((self._name, command))

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            yield event
            if isinstance(event, Failed):
                return

    async def close(self) -> None:
        if self._open:
            self._open = False
            self._send((self._name, Close()))
            self._forget(self._name)
            self._events.put_nowait(None)

    def take(self, message: Event | Opened | Heard) -> None:
        """What came from the hub's side."""
        if isinstance(message, Heard):
            self._waiting -= message.num_samples
        elif isinstance(message, Opened):
            if not self.opened.done():
                self.opened.set_result(message.error)
        else:
            if isinstance(message, Failed):
                self._open = False
                self._forget(self._name)
                if not self.opened.done():
                    self.opened.set_exception(Busy(message.message, "worker_unavailable"))
            elif isinstance(message, TurnMeasured):
                message.figures["backlog"] = round(1000 * self.backlog_s, 3)
            self._events.put_nowait(message)


def describe(model: SpeechLM, name: str) -> BundleInfo:
    """What a bundle can do."""
    fields = {field.name for field in model.lm.layout.fields}
    text = model.lm.text_tokenizer is not None
    return BundleInfo(
        name=name,
        fingerprint=model.lm.fingerprint,
        kind="duplex" if "other" in fields else "turns",
        sample_rate=model.sample_rate,
        frame_s=1 / model.tokenizer.frame_rate,
        writes_text=text and bool(fields & {"answer_text", "text"}),
        transcribes=can_transcribe(model),
        speaks_text=can_speak_text(model),
        voices=tuple(getattr(model.vocoder, "speakers", ())),
    )


class Conversations(ABC):
    """Keeps the sessions of a service and hands messages to and fro; see
    :class:`speechlm.dialogue.service.DialogueService`. Subclasses carry them to a hub."""

    def __init__(self, info: BundleInfo, max_sessions: int) -> None:
        self._info = info
        self._max_sessions = max_sessions
        self._numbers = itertools.count(1)
        self._sessions: dict[str, Conversation] = {}
        self._works: dict[str, asyncio.Queue[Done | Busy]] = {}
        self._probe: asyncio.Future[str | None] | None = None

    @property
    def info(self) -> BundleInfo:
        return self._info

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    async def open(self, settings: SessionSettings) -> Conversation:
        if len(self._sessions) >= self._max_sessions:
            raise Busy(
                f"all {self._max_sessions} sessions are taken; try again later",
                "session_limit_reached",
            )
        self._check_ready()
        name = f"sess_{next(self._numbers)}"
        session = Conversation(name, settings.input_rate, self._send, self._forget)
        self._sessions[name] = session
        try:
            self._send((name, Open(settings=settings)))
            error = await asyncio.wait_for(session.opened, ANSWER_S)
        except BaseException as broken:
            await session.close()
            if isinstance(broken, TimeoutError):
                raise Busy("the model does not answer", "worker_unavailable") from broken
            raise
        if error is not None:
            await session.close()
            raise InputError(error)
        return session

    async def probe(self) -> float:
        self._check_ready()
        begun = time.perf_counter()
        if self._probe is None or self._probe.done():
            self._probe = asyncio.get_running_loop().create_future()
            self._send((PROBE, Close()))
        try:
            error = await asyncio.wait_for(asyncio.shield(self._probe), ANSWER_S)
        except TimeoutError as late:
            raise Busy("the model does not answer", "worker_unavailable") from late
        if error is not None:
            raise Busy(f"the model fails: {error}", "worker_unavailable")
        return 1000 * (time.perf_counter() - begun)

    async def speak(self, request: SpeechRequest) -> AsyncIterator[Samples]:
        async for piece in self._work(Speak(request=request)):
            assert not isinstance(piece, str)
            yield piece

    async def transcribe(self, samples: Samples, sample_rate: int) -> str:
        pieces = self._work(WriteDown(samples=samples, sample_rate=sample_rate))
        return "".join([str(piece) async for piece in pieces])

    async def _work(self, message: Speak | WriteDown) -> AsyncIterator[Samples | str]:
        self._check_ready()
        name = f"work_{next(self._numbers)}"
        done: asyncio.Queue[Done | Busy] = asyncio.Queue()
        self._works[name] = done
        self._send((name, message))
        try:
            while True:
                said = await done.get()
                if isinstance(said, Busy):
                    raise said
                if said.error is not None:
                    raise InputError(said.error)
                if said.piece is None:
                    return
                yield said.piece
        finally:
            del self._works[name]
            self._send((name, Close()))

    @abstractmethod
    def _send(self, message: Down) -> None:
        """Carry a message to the hub; never waits."""

    @abstractmethod
    def _check_ready(self) -> None:
        """Raises Busy where the hub cannot be reached."""

    def _deliver(self, message: Up) -> None:
        """In the loop's thread: what came from the hub's side."""
        name, content = message
        if name == PROBE:
            if self._probe is not None and not self._probe.done():
                assert isinstance(content, Opened)
                self._probe.set_result(content.error)
        elif isinstance(content, Done):
            if (done := self._works.get(name)) is not None:
                done.put_nowait(content)
        elif (session := self._sessions.get(name)) is not None:
            session.take(content)

    def _fail_all(self, code: str, message: str) -> None:
        for session in list(self._sessions.values()):
            session.take(Failed(code=code, message=message))
        for done in self._works.values():
            done.put_nowait(Busy(message, "worker_unavailable"))
        if self._probe is not None and not self._probe.done():
            self._probe.set_result(message)

    def _forget(self, name: str) -> None:
        self._sessions.pop(name, None)
