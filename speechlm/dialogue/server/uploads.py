"""What callers send over HTTP, read within limits of size and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from speechlm.dialogue.server.refusal import Refusal
from speechlm.errors import PluginError

UPLOAD_S = 30.0
"""Within which a request's body must be here; one that trickles in gets 408."""
MAX_FIELDS = 20


async def read_json(request: Request, max_bytes: int, *, optional: bool = False) -> dict[str, Any]:
    """A body that is a JSON object.

    Raises:
        Refusal: 400 if it is none, 408, 411 or 413.
    """
    if optional and request.headers.get("content-length", "0") == "0":
        return {}
    _check_length(request, max_bytes)
    async with _in_time():
        raw = await request.body()
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "invalid_json", "expected the body to be a JSON object")
    return body


@asynccontextmanager
async def read_form(request: Request, max_bytes: int) -> AsyncIterator[FormData]:
    """A body that is a form with files; what it keeps on disk is removed afterwards.

    Raises:
        Refusal: 400 if it is none, 408, 411 or 413.
    """
    _check_length(request, max_bytes)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(400, "invalid_form", "expected the body to be multipart/form-data")
    try:
        async with _in_time():
            form = await request.form(max_files=1, max_fields=MAX_FIELDS)
    except HTTPException as error:
        raise Refusal(400, "invalid_form", f"the form cannot be read: {error.detail}") from None
    except AssertionError:  # how starlette says that python-multipart is missing
        raise PluginError("forms need python-multipart; pip install 'speechlm[serve]'") from None
    try:
        yield form
    finally:
        await form.close()


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length")
    if length is None or not length.isdecimal():
        raise Refusal(411, "length_required", "expected a Content-Length")
    if int(length) > max_bytes:
        raise Refusal(
            413, "too_large", f"expected a body of at most {max_bytes} bytes, got {length}"
        )


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(UPLOAD_S):
            yield
    except TimeoutError:
        raise Refusal(
            408, "upload_timeout", f"the body did not come within {UPLOAD_S:g} s"
        ) from None
    except ClientDisconnect:
        raise Refusal(400, "disconnected", "the client went before its body was here") from None
