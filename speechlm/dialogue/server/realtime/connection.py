"""A WebSocket and a session, joined: four tasks that end together and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from speechlm.dialogue.messages import (
    Cancel,
    Command,
    DeleteItem,
    Failed,
    Respond,
    ResponseEnded,
    SpeechStarted,
    Truncate,
    TurnMeasured,
)
from speechlm.dialogue.server.realtime.client_events import JSON, Dialect
from speechlm.dialogue.server.realtime.configuration import Configuration
from speechlm.dialogue.server.realtime.conversation import Conversation
from speechlm.dialogue.server.realtime.inbox import Inbox
from speechlm.dialogue.server.realtime.items import new_id
from speechlm.dialogue.server.realtime.outbox import Outbox, SlowClientError
from speechlm.dialogue.server.realtime.state import error_event
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.service import Busy, DialogueService, Session
from speechlm.errors import SpeechLMError

AHEAD_S = 1.0
"""Sound that the session may have waiting; the rest waits here, where it can be dropped."""
POLL_S = 0.01
"""Between looks at whether the session has caught up."""
FAREWELL_S = 5.0
"""For a client to take the last events and the close, before it is cut off."""
MAX_WAITING_COMMANDS = 1_000
"""Behind sound that waits; beyond, nothing more is read from the client."""

SOUND = frozenset(("response.output_audio.delta", "response.audio.delta"))

logger = logging.getLogger(__name__)


class Metrics(Protocol):
    """Who counts."""

    def turn(self, figures: Mapping[str, Any]) -> None:
        """An answer has ended; figures of ``TurnMeasured``."""
        ...

    def error(self, code: str) -> None:
        """A client was told of an error."""
        ...

    def dropped(self, seconds: float) -> None:
        """Sound of a client that was faster than the session went unheard."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ending:
    """Why a connection is over."""

    code: int | None
    """To close with; None where the client has gone."""
    reason: str = ""
    error: str | None = None
    """Code of an error event before."""


async def converse(
    websocket: WebSocket,
    service: DialogueService,
    settings: ServerSettings,
    metrics: Metrics,
    *,
    dialect: Dialect,
) -> None:
    """Hold one conversation in OpenAI's Realtime protocol, until either side ends it.

    Args:
        websocket: Not accepted yet; its token and origin were checked.
        service: Gives the session; where none is free the client is told and closed with 1008.
        settings: Limits.
        metrics: Who counts turns, errors and dropped sound.
        dialect: ``ga``, or the names of the beta.
    """
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol="realtime" if "realtime" in offered else None)
    expires_at = int(time.time() + settings.session_s)
    configuration = Configuration.first(new_id("sess"), expires_at, settings, service.info)
    try:
        opened = await _open(websocket, service, configuration)
    except Busy as busy:
        await _refuse(websocket, metrics, busy, busy.code, busy.code, 1008)
        return
    except SpeechLMError as error:
        await _refuse(websocket, metrics, error, "session_failed", "server_error", 1011)
        return
    if opened is None:
        return
    session, first = opened
    connection = _Connection(websocket, session, settings, metrics, configuration, dialect)
    try:
        ending = await connection.run(first)
    finally:
        # Before the farewell: a client that is slow to take it shall not hold a session.
        await session.close()
    await connection.close(ending)


async def _refuse(
    websocket: WebSocket, metrics: Metrics, error: Exception, code: str, kind: str, close: int
) -> None:
    metrics.error(code)
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await websocket.send_text(json.dumps(error_event(code, str(error), kind=kind)))
            await websocket.close(close, code)


async def _open(
    websocket: WebSocket, service: DialogueService, configuration: Configuration
) -> tuple[Session, asyncio.Task[Message]] | None:
    """A session, and what the client says first; None if it hung up while it waited for one."""
    first = asyncio.create_task(websocket.receive())
    opening = asyncio.create_task(service.open(configuration.settings()))
    try:
        await asyncio.wait((first, opening), return_when=asyncio.FIRST_COMPLETED)
        gone = first.done() and first.result()["type"] == "websocket.disconnect"
        if gone and not opening.done():
            return None
        return await opening, first
    except BaseException:
        first.cancel()
        raise
    finally:
        if not opening.done():
            opening.cancel()
            with suppress(asyncio.CancelledError, SpeechLMError):
                # It may have come in the last moment.
                await (await opening).close()


class _Connection:
    def __init__(
        self,
        websocket: WebSocket,
        session: Session,
        settings: ServerSettings,
        metrics: Metrics,
        configuration: Configuration,
        dialect: Dialect,
    ) -> None:
        self._websocket = websocket
        self._session = session
        self._settings = settings
        self._metrics = metrics
        self._inbox = Inbox()
        self._outbox = Outbox(settings.max_output_bytes)
        self._conversation = Conversation(configuration, self._inbox, dialect)
        self._arrived = asyncio.Event()

    async def run(self, first: asyncio.Task[Message]) -> _Ending:
        self._send(self._conversation.opened())
        parts = (self._receive(first), self._hand_over(), self._listen(), self._write())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            limit = self._settings.session_s
            done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            ending = _Ending(code=1000, reason="session limit reached", error="session_expired")
            if done:
                ending = self._why(done)
        finally:
            for task in (first, *tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return ending

    def _why(self, done: set[asyncio.Task[_Ending]]) -> _Ending:
        endings = []
        for task in done:
            error = task.exception()
            if error is None:
                endings.append(task.result())
            elif isinstance(error, SlowClientError):
                endings.append(_Ending(code=1013, reason="the client reads too slowly"))
            elif isinstance(error, WebSocketDisconnect):
                endings.append(_Ending(code=None))
            else:
                logger.error("a conversation broke", exc_info=error)
                endings.append(_Ending(code=1011, reason="error", error="internal_error"))
        # A client that has gone needs no more.
        return min(endings, key=lambda one: one.code is not None)

    async def close(self, ending: _Ending) -> None:
        if ending.code is None or self._websocket.client_state is WebSocketState.DISCONNECTED:
            return
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                if ending.code != 1013:
                    with suppress(SlowClientError):
                        if ending.error is not None:
                            kind = "server_error" if ending.code == 1011 else None
                            self._error(ending.error, ending.reason, kind)
                    while len(self._outbox):
                        await self._websocket.send_text(await self._outbox.get())
                await self._websocket.close(ending.code, ending.reason)

    # --- the four tasks ---

    async def _receive(self, first: asyncio.Task[Message]) -> _Ending:
        """The client's messages, as they come."""
        is_first = True
        while True:
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    heard = await (first if is_first else self._websocket.receive())
            except TimeoutError:
                return _Ending(code=1000, reason="no message for too long", error="idle_timeout")
            if heard["type"] == "websocket.disconnect":
                return _Ending(code=None)
            is_first = False
            text = heard.get("text")
            if text is None:
                self._error("invalid_frame", "expected JSON in text frames, got a binary frame")
                continue
            outcome = self._conversation.feed(text)
            for command in outcome.commands:
                self._queue(command)
            if outcome.drop_sound:
                self._outbox.drop_sound()
            self._send(outcome.events)
            # A flood of small messages shall not keep the others waiting.
            await asyncio.sleep(0)
            while self._inbox.num_others > MAX_WAITING_COMMANDS:
                await asyncio.sleep(POLL_S)

    async def _hand_over(self) -> _Ending:
        """What waits in the inbox, to the session, no faster than it hears."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while len(self._inbox):
                if self._session.backlog_s > AHEAD_S:
                    await asyncio.sleep(POLL_S)
                elif (command := self._inbox.take()) is not None:
                    self._session.send(command)

    async def _listen(self) -> _Ending:
        """What the session says, into the outbox."""
        async for event in self._session.events():
            if isinstance(event, TurnMeasured):
                self._metrics.turn(event.figures)
            interrupted = isinstance(event, SpeechStarted) and self._conversation.interrupts
            if interrupted or (isinstance(event, ResponseEnded) and event.status == "cancelled"):
                for response_id, sound_bytes in self._outbox.drop_sound().items():
                    for command in self._conversation.cut_unsent(response_id, sound_bytes):
                        self._session.send(command)
            self._send(self._conversation.tell(event))
            if isinstance(event, Failed):
                return _Ending(code=1011, reason=event.code)
        return _Ending(code=1011, reason="session ended")

    async def _write(self) -> _Ending:
        """The outbox, to the client, as fast as it reads."""
        while True:
            await self._websocket.send_text(await self._outbox.get())

    # --- helpers ---

    def _queue(self, command: Command) -> None:
        # What stops something does not wait behind sound, unless that is still to begin.
        stops = isinstance(command, Cancel | Truncate | DeleteItem)
        if stops and not self._inbox.holds(Respond):
            self._session.send(command)
            return
        rate = self._conversation.configuration.input_format.rate
        room = self._settings.max_backlog_s - self._session.backlog_s
        dropped = self._inbox.put(command, rate=rate, max_samples=int(room * rate))
        if dropped:
            self._metrics.dropped(dropped / rate)
        self._arrived.set()

    def _error(self, code: str, message: str, kind: str | None = None) -> None:
        event = error_event(code, message, kind=kind or "invalid_request_error")
        self._send(self._conversation.said(event))

    def _send(self, events: list[JSON]) -> None:
        for event in events:
            text = json.dumps(event)
            if event["type"] in SOUND:
                delta = event["delta"]
                sound_bytes = len(delta) * 3 // 4 - delta.count("=", -2)
                self._outbox.put(text, event["response_id"], sound_bytes)
                continue
            if event["type"] == "error":
                self._metrics.error(event["error"]["code"])
            if self._settings.log_sound:
                logger.info("%s", text)
            self._outbox.put(text)
