"""The server's routes: conversations, speech, health, figures and the page, behind one guard."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, TextIO

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from speechlm.dialogue.server import moshi, speech
from speechlm.dialogue.server.access import Access, is_beta
from speechlm.dialogue.server.guard import Guard
from speechlm.dialogue.server.limits import LimitedService
from speechlm.dialogue.server.metrics import Metrics
from speechlm.dialogue.server.realtime.connection import converse
from speechlm.dialogue.server.refusal import Refusal
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.server.uploads import read_json
from speechlm.dialogue.service import Busy, DialogueService

PAGE = Path(__file__).parent / "page"
SECRET_LIFETIME_S = (10, 7200)
DEFAULT_SECRET_LIFETIME_S = 600
PROBE_FRESH_S = 1.0
"""Health is asked of the model at most so often, however many ask."""


def create_app(
    service: DialogueService,
    settings: ServerSettings,
    access: Access,
    *,
    log: TextIO | None = None,
) -> Starlette:
    """The server as an ASGI application.

    Args:
        service: What holds the conversations; it is started and closed by the caller.
        settings: Limits.
        access: Who may come in.
        log: Gets a JSON line a turn.
    """
    metrics = Metrics(log)
    limited = LimitedService(service, settings, metrics)
    metrics.gauge("sessions", "Sessions that are taken", lambda: limited.num_sessions)
    metrics.gauge("sessions_waiting", "Callers in the queue", lambda: limited.num_waiting)
    routes = Routes(limited, settings, access, metrics)
    app = Starlette(
        routes=[
            Route("/", routes.page),
            Mount("/static", StaticFiles(directory=PAGE, check_dir=False)),
            Route("/health", routes.health),
            Route("/metrics", routes.show_metrics),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/v1/audio/speech", routes.speech, methods=["POST"]),
            Route("/v1/audio/transcriptions", routes.transcriptions, methods=["POST"]),
            Route("/v1/realtime/client_secrets", routes.client_secrets, methods=["POST"]),
            WebSocketRoute("/v1/realtime", routes.realtime),
            WebSocketRoute("/api/chat", routes.moshi),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=access.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            ),
            Middleware(Guard, access=access, metrics=metrics),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _not_served, Exception: _broken},
    )
    app.state.service = limited
    return app


class Routes:
    """What each address does."""

    def __init__(
        self, service: LimitedService, settings: ServerSettings, access: Access, metrics: Metrics
    ) -> None:
        self._service, self._settings = service, settings
        self._access, self._metrics = access, metrics
        self._started = int(time.time())
        self._probing = asyncio.Lock()
        self._probed_at, self._probe_ms = float("-inf"), 0.0

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def health(self, request: Request) -> Response:
        """One real frame through the model; 503 when it does not come, or nobody is let in."""
        try:
            if self._service.draining:
                raise Busy("the server is being stopped", "draining")
            async with self._probing:
                if time.monotonic() - self._probed_at > PROBE_FRESH_S:
                    self._probe_ms = await self._service.probe()
                    self._probed_at = time.monotonic()
        except Busy as busy:
            raise Refusal(503, busy.code, str(busy), retry_after_s=2) from None
        return JSONResponse(
            {
                "status": "ok",
                "frame_ms": round(self._probe_ms, 3),
                "sessions": self._service.num_sessions,
                "max_sessions": self._settings.max_sessions,
                "waiting": self._service.num_waiting,
            }
        )

    async def show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._settings.model:
            raise Refusal(
                404,
                "model_not_found",
                f"this server has {self._settings.model!r}, not {name[:100]!r}",
                param="model",
            )
        return JSONResponse(self._model())

    async def speech(self, request: Request) -> Response:
        return await speech.speak(request, self._service, self._settings.max_upload_bytes)

    async def transcriptions(self, request: Request) -> Response:
        return await speech.transcribe(request, self._service, self._settings.max_upload_bytes)

    async def client_secrets(self, request: Request) -> Response:
        """A key for a web page: it opens conversations for a while, and nothing else."""
        body = await read_json(request, self._settings.max_upload_bytes, optional=True)
        lifetime, session = body.get("expires_after") or {}, body.get("session") or {}
        seconds = (
            lifetime.get("seconds", DEFAULT_SECRET_LIFETIME_S) if isinstance(lifetime, dict) else ""
        )
        low, high = SECRET_LIFETIME_S
        if not isinstance(seconds, int) or not low <= seconds <= high:
            raise Refusal(
                400,
                "invalid_value",
                f"expires_after: expected seconds within {low}..{high}",
                param="expires_after",
            )
        if not isinstance(session, dict) or session.get("type", "realtime") != "realtime":
            raise Refusal(
                400, "invalid_value", 'session: expected {"type": "realtime", ...}', param="session"
            )
        value, expires_at = self._access.client_secrets.create(seconds, session)
        return JSONResponse(
            {
                "value": value,
                "expires_at": expires_at,
                "session": {
                    **session,
                    "type": "realtime",
                    "object": "realtime.session",
                    "id": f"sess_{value[3:19]}",
                    "model": self._settings.model,
                    "expires_at": expires_at,
                },
            }
        )

    async def realtime(self, websocket: WebSocket) -> None:
        beta = is_beta(websocket.headers, websocket.scope["subprotocols"])
        await converse(
            websocket,
            self._service,
            self._settings,
            self._metrics,
            dialect="beta" if beta else "ga",
        )

    async def moshi(self, websocket: WebSocket) -> None:
        await moshi.chat(websocket, self._service, self._settings, self._metrics)

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._settings.model,
            "object": "model",
            "created": self._started,
            "owned_by": "speechlm",
            "fingerprint": self._service.info.fingerprint,
            "kind": self._service.info.kind,
        }


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _not_served(request: Request, error: Exception) -> Response:
    """Unknown addresses and methods, in the shape of all other refusals."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    codes = {404: "unknown_url", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "http_error")
    refusal = Refusal(error.status_code, code, f"{what}: {error.detail}")
    response = refusal.response()
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    """A bug: the client learns no more than that, the error goes to the server's log."""
    return Refusal(500, "internal_error", "the server failed; its log says how").response()
