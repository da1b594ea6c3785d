"""What callers send is read within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("python_multipart")

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from speechlm.dialogue.server import uploads
from speechlm.dialogue.server.refusal import Refusal
from speechlm.dialogue.server.uploads import read_form, read_json


async def take_json(request: Request) -> Response:
    return JSONResponse(await read_json(request, 100))


async def take_form(request: Request) -> Response:
    async with read_form(request, 2000) as form:
        return JSONResponse(sorted(form))


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


APP = Starlette(
    routes=[
        Route("/json", take_json, methods=["POST"]),
        Route("/form", take_form, methods=["POST"]),
    ],
    exception_handlers={Refusal: refused},
)


def post(path: str, **request: object) -> tuple[int, object]:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=APP)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, **request)

    response = asyncio.run(ask())
    body = response.json()
    return response.status_code, body["error"]["code"] if "error" in body else body


def test_a_json_object_is_read() -> None:
    assert post("/json", json={"a": 1}) == (200, {"a": 1})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 90])
def test_anything_but_a_json_object_is_refused(content: bytes) -> None:
    assert post("/json", content=content) == (400, "invalid_json")


def test_a_form_with_a_file_is_read() -> None:
    fields = post("/form", files={"file": ("a.wav", b"123")}, data={"model": "x"})
    assert fields == (200, ["file", "model"])


def test_forms_that_are_none_or_hold_too_many_files_are_refused() -> None:
    assert post("/form", json={}) == (400, "invalid_form")
    files = [("file", ("a.wav", b"1")), ("file", ("b.wav", b"2"))]
    assert post("/form", files=files) == (400, "invalid_form")
    broken = {"Content-Type": "multipart/form-data"}
    assert post("/form", content=b"x", headers=broken) == (400, "invalid_form")


@pytest.mark.parametrize("path", ["/json", "/form"])
def test_a_body_that_is_too_large_is_refused_by_its_header(path: str) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    headers = {"Content-Length": str(10**9)}
    assert post(path, content=never(), headers=headers) == (413, "too_large")


def test_a_body_without_a_length_is_refused() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{}"

    assert post("/json", content=chunks()) == (411, "length_required")


def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "UPLOAD_S", 0.05)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)
        yield b"}"

    headers = {"Content-Length": "2"}
    assert post("/json", content=trickle(), headers=headers) == (408, "upload_timeout")
