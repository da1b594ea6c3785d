"""The process: a socket, uvicorn, and an end that lets answers be finished."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from speechlm.dialogue.server.limits import LimitedService
from speechlm.errors import InputError

PING_S = 20.0
"""A WebSocket that answers no ping for so long is dead."""
HEADER_S = 10.0
"""A request's header must come within twice this."""
FLUSH_S = 0.3
"""From the end of the last answer to the close of its connection."""


def bind(host: str, port: int) -> socket.socket:
    """Take the address, before anything slow is begun.

    Raises:
        InputError: It is taken, or not this machine's, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use; stop what uses it, or give another --port"
            ) from None
        raise InputError(f"cannot listen at {host}, port {port}: {error}") from None
    return taken


class Server(uvicorn.Server):
    """Stops in two steps: nobody new is let in, and what is being answered is finished."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: LimitedService,
        *,
        drain_s: float,
        when_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._service, self._drain_s, self._when_ready = service, drain_s, when_ready
        self._stop_at = float("inf")
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal drains, a second one doesn't wait."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._signals and not self._service.draining:
            self._service.drain()
            self._stop_at = now + self._drain_s
        if self._service.draining and not self._service.answering:
            self._stop_at = min(self._stop_at, now + FLUSH_S)
        if now >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)


class PatientProtocol(H11Protocol):
    """HTTP that doesn't wait forever for a request's header."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._was_waiting = False
        self._watch()

    def _watch(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        begun = self.cycle is None or bool(self.conn.trailing_data[0])
        is_waiting = self.conn.their_state is h11.IDLE and begun
        if is_waiting and self._was_waiting:
            self.transport.close()
            return
        self._was_waiting = is_waiting
        self.loop.call_later(HEADER_S, self._watch)


async def serve(
    app: Starlette,
    listening: socket.socket,
    *,
    max_frame_bytes: int,
    drain_s: float,
    when_ready: Callable[[], None],
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; returns once the last connection is closed.

    Args:
        app: What :func:`speechlm.dialogue.server.app.create_app` gives.
        listening: What :func:`bind` gives.
        max_frame_bytes: A WebSocket message beyond closes with 1009.
        drain_s: How long answers may go on after a signal.
        when_ready: Called once it listens.
        certificate: Chain of certificates for TLS, with its ``key``.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=max_frame_bytes,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        ws_per_message_deflate=False,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server = Server(config, app.state.service, drain_s=drain_s, when_ready=when_ready)
    await server.serve(sockets=[listening])


def _is_news(record: logging.LogRecord) -> bool:
    """Not uvicorn's word on each WebSocket that was refused with a response, which is allowed."""
    return "without completing handshake" not in record.getMessage()
