"""A real server and a real client of the Realtime protocol, in one event loop."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect

from speechlm.dialogue.server.realtime.client_events import Dialect
from speechlm.dialogue.server.realtime.connection import converse
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.service import DialogueService

JSON = dict[str, Any]


class Counts:
    """What the server counted."""

    def __init__(self) -> None:
        self.turns: list[Mapping[str, Any]] = []
        self.errors: Counter[str] = Counter()
        self.dropped_s = 0.0

    def turn(self, figures: Mapping[str, Any]) -> None:
        self.turns.append(figures)

    def error(self, code: str) -> None:
        self.errors[code] += 1

    def dropped(self, seconds: float) -> None:
        self.dropped_s += seconds


class Served:
    def __init__(self, url: str, counts: Counts) -> None:
        self.url = url
        self.counts = counts
        self.broken: list[BaseException] = []
        """Errors that left ``converse``."""
        self.running = 0
        """Conversations that go on."""

    async def idle(self) -> None:
        """Until all conversations are over."""
        async with asyncio.timeout(10):
            while self.running:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    service: DialogueService, dialect: Dialect = "ga", **limits: Any
) -> AsyncIterator[Served]:
    """A server on a free port of this machine."""
    settings = ServerSettings(model="test", **limits)
    served = Served("", Counts())

    async def endpoint(websocket: WebSocket) -> None:
        served.running += 1
        try:
            await converse(websocket, service, settings, served.counts, dialect=dialect)
        except BaseException as error:
            served.broken.append(error)
            raise
        finally:
            served.running -= 1

    app = Starlette(routes=[WebSocketRoute("/v1/realtime", endpoint)])
    config = uvicorn.Config(
        app, port=0, lifespan="off", log_level="critical", ws_max_size=settings.max_frame_bytes
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    served.url = f"ws://127.0.0.1:{port}/v1/realtime"
    try:
        yield served
        assert served.broken == []
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


class Client:
    """Keeps every event that it gets."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[JSON] = []

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def hear(self) -> JSON:
        event: JSON = json.loads(await asyncio.wait_for(self.socket.recv(), 20))
        self.events.append(event)
        return event

    async def until(self, kind: str) -> JSON:
        """The next event of a kind."""
        while True:
            event = await self.hear()
            if event["type"] == kind:
                return event


@asynccontextmanager
async def talking(served: Served, **options: Any) -> AsyncIterator[Client]:
    """A client that was greeted."""
    async with connect(served.url, max_size=None, **options) as socket:
        client = Client(socket)
        assert (await client.hear())["type"] == "session.created"
        yield client
