"""The socket that a server listens at, and who may hold it open."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from speechlm.dialogue.server import serving
from speechlm.errors import InputError


def test_a_port_in_use_says_so() -> None:
    with serving.bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InputError, match=r"port \d+ of 127.0.0.1 is in use"):
            serving.bind("127.0.0.1", taken.getsockname()[1])


def test_an_address_of_another_machine_says_so() -> None:
    with pytest.raises(InputError, match=r"cannot listen at 192.0.2.1, port 80"):
        serving.bind("192.0.2.1", 80)


def while_serving(talk: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Run ``talk`` with the port of a server that says "here"."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    config = uvicorn.Config(
        app, http=serving.PatientProtocol, log_config=None, lifespan="off", log_level="error"
    )

    async def run() -> None:
        server = uvicorn.Server(config)
        listening = serving.bind("127.0.0.1", 0)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listening])
        try:
            async with asyncio.timeout(10):
                await talk(listening.getsockname()[1])
        finally:
            await server.shutdown(sockets=[listening])

    asyncio.run(run())


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_header_that_never_ends_is_closed(monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    monkeypatch.setattr(serving, "HEADER_S", 0.05)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if before:
            writer.write(before)
            assert b"here" in await reader.readuntil(b"here")
        writer.write(b"GET / HTTP/1.1\r\nHost: loc")
        assert await reader.read() == b"", "closed, without an answer"
        writer.close()
        await writer.wait_closed()

    while_serving(talk)


def test_a_connection_that_asks_again_and_again_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEADER_S", 0.2)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(10):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"here")
            await asyncio.sleep(0.06)
        writer.close()
        await writer.wait_closed()

    while_serving(talk)


def test_sockets_are_given_back() -> None:
    with serving.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
    with serving.bind("127.0.0.1", port) as again:
        assert isinstance(again, socket.socket)
