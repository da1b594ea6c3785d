"""What every request passes first: whose page it comes from, its token, what browsers may do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from speechlm.dialogue.server.access import Access
from speechlm.dialogue.server.metrics import Metrics
from speechlm.dialogue.server.refusal import Refusal

OPEN = ("/", "/health")
"""Addresses that need no token, beside the page's files: a browser asks for a page without one."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every response: nothing from outside runs on the page, and nobody frames it."""


class Guard:
    """ASGI middleware that checks callers and counts bytes."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def counted_receive() -> Message:
            message = await receive()
            self._metrics.received(_size(message))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(HEADERS)
            self._metrics.sent(_size(message))
            await send(message)

        try:
            session = self._check(scope)
        except Refusal as refusal:
            self._metrics.refused(refusal.code)
            if scope["type"] == "http":
                await refusal.response()(scope, receive, counted_send)
            else:
                socket = WebSocket(scope, receive, counted_send)
                await socket.send_denial_response(refusal.response())
            return
        if session:
            await self._app(scope, _configuring(session, counted_receive), counted_send)
        else:
            await self._app(scope, counted_receive, counted_send)

    def _check(self, scope: Scope) -> Mapping[str, Any]:
        """Refuse, or give what a client secret sets the conversation to."""
        headers, path = Headers(scope=scope), scope["path"]
        self._access.check_page(headers)
        if path in OPEN or path.startswith("/static/"):
            return {}
        talks = scope["type"] == "websocket" and path == "/v1/realtime"
        return self._access.check_token(headers, scope.get("subprotocols", ()), talks=talks)


def _configuring(session: Mapping[str, Any], receive: Receive) -> Receive:
    """Messages of a client as if its first one had configured the session."""
    text = json.dumps({"type": "session.update", "session": dict(session)})
    first: list[Message] = [{"type": "websocket.receive", "text": text}]
    connected = False

    async def receive_next() -> Message:
        nonlocal connected
        if connected and first:
            return first.pop()
        connected = True
        return await receive()

    return receive_next


def _size(message: Message) -> int:
    """Bytes of a message's content."""
    content = message.get("body") or message.get("bytes") or message.get("text") or b""
    return len(content)
