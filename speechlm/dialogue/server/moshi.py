"""Moshi's protocol, for models that listen and speak at once: Ogg Opus both ways.

A message's first byte is its kind: 0 the server is ready, 1 sound (Ogg Opus, 24 kHz, one
channel), 2 text, 5 an error. Others are passed over, as its clients do.

Source: kyutai-labs/moshi, rust/protocol.md.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from speechlm.dialogue.messages import Failed, Hear, Samples, Sound, Text, TurnMeasured
from speechlm.dialogue.server.metrics import Metrics
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.service import Busy, DialogueService, Session
from speechlm.dialogue.settings import SessionSettings

READY, SOUND, TEXT, ERROR = b"\x00", b"\x01", b"\x02", b"\x05"
SAMPLE_RATE = 24_000
FRAME = 1920
"""Samples that are encoded at a time, 80 ms."""
SEND_S = 5.0
"""A client who takes nothing for so long is closed with 1013."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _End:
    """Why a conversation is over."""

    code: int
    """Of the WebSocket."""
    message: str = ""
    """What the client is told; nothing if it is gone."""


async def chat(
    websocket: WebSocket, service: DialogueService, settings: ServerSettings, metrics: Metrics
) -> None:
    """Hold one conversation, until either side ends it."""
    await websocket.accept()
    end = await _converse(websocket, service, settings, metrics)
    if not end.message:
        return
    metrics.error(f"moshi_{end.code}")
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(SEND_S):
            await websocket.send_bytes(ERROR + end.message.encode())
            await websocket.close(end.code, end.message[:100])


async def _converse(
    websocket: WebSocket, service: DialogueService, settings: ServerSettings, metrics: Metrics
) -> _End:
    if service.info.kind != "duplex":
        return _End(
            code=1008,
            message=f"the bundle {service.info.name!r} answers turn by turn, this protocol is for "
            "those that listen and speak at once; use /v1/realtime",
        )
    if find_spec("sphn") is None:
        return _End(code=1011, message="this needs sphn; pip install 'speechlm[moshi]'")
    try:
        session = await service.open(
            SessionSettings(
                input_rate=SAMPLE_RATE, output_rate=SAMPLE_RATE, turns=None, continuous=True
            )
        )
    except Busy as busy:
        return _End(code=1013, message=str(busy))
    tasks = [
        asyncio.create_task(_hear(websocket, session, settings, metrics)),
        asyncio.create_task(_say(websocket, session, metrics)),
    ]
    try:
        await websocket.send_bytes(READY)
        done, _ = await asyncio.wait(
            tasks, timeout=settings.session_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            return _End(code=1000, message=f"the {settings.session_s:g} s of a session are over")
        return done.pop().result()
    except WebSocketDisconnect:
        return _End(code=1000)
    finally:
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # also where the server itself is being stopped
            await session.close()


async def _hear(
    websocket: WebSocket, session: Session, settings: ServerSettings, metrics: Metrics
) -> _End:
    """What the client sends goes to the session."""
    import sphn

    reader = sphn.OpusStreamReader(SAMPLE_RATE)
    while True:
        try:
            async with asyncio.timeout(settings.idle_s):
                message = await websocket.receive_bytes()
        except TimeoutError:
            return _End(code=1000, message=f"nothing came for {settings.idle_s:g} s")
        except KeyError:
            return _End(code=1003, message="expected binary messages, got text")
        if message[:1] != SOUND:
            continue
        try:
            samples = reader.append_bytes(message[1:])
        except (ValueError, RuntimeError) as error:
            return _End(code=1007, message=f"expected Ogg Opus; {error}")
        if session.backlog_s > settings.max_backlog_s:
            metrics.dropped(len(samples) / SAMPLE_RATE)
        elif len(samples):
            session.send(Hear(samples=samples))


async def _say(websocket: WebSocket, session: Session, metrics: Metrics) -> _End:
    """What the session says goes to the client."""
    import sphn

    writer = sphn.OpusStreamWriter(SAMPLE_RATE)
    held: Samples = np.zeros(0, np.float32)
    async for event in session.events():
        message = b""
        if isinstance(event, Sound):
            held = np.concatenate([held, event.samples])
            while len(held) >= FRAME:
                message += writer.append_pcm(held[:FRAME])
                held = held[FRAME:]
            message = SOUND + message if message else b""
        elif isinstance(event, Text):
            message = TEXT + event.delta.encode()
        elif isinstance(event, TurnMeasured):
            metrics.turn(event.figures)
        elif isinstance(event, Failed):
            return _End(code=1011, message=event.message)
        if message:
            try:
                async with asyncio.timeout(SEND_S):
                    await websocket.send_bytes(message)
            except TimeoutError:
                return _End(code=1013, message=f"nothing was taken for {SEND_S:g} s")
    return _End(code=1011, message="the session ended")
