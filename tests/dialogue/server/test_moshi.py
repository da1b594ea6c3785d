"""Moshi's protocol, spoken by a client with the same codec."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")
pytest.importorskip("sphn")

import sphn
from small_duplex import noise, small_duplex
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from speechlm.dialogue.local import LocalService
from speechlm.dialogue.running import warm_up
from speechlm.dialogue.server.access import Access
from speechlm.dialogue.server.app import create_app
from speechlm.dialogue.server.settings import ServerSettings

CHAT = "ws://127.0.0.1:8000/api/chat"
FRAME = 1920


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    model = small_duplex()
    warm_up(model)
    service = LocalService(model, name="duplex")
    settings = ServerSettings(model="duplex", max_sessions=1)
    app = create_app(service, settings, Access())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert client.portal is not None
        with client.portal.wrap_async_context_manager(service):
            yield client


def test_sound_goes_both_ways_as_ogg_opus(client: TestClient) -> None:
    writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
    spoken = noise(0.8, 24_000)
    heard = np.zeros(0, np.float32)
    with client.websocket_connect(CHAT) as socket:
        assert socket.receive_bytes() == b"\x00"
        socket.send_bytes(b"\x03a kind that nobody knows")
        for at in range(0, len(spoken) - FRAME + 1, FRAME):
            socket.send_bytes(b"\x01" + writer.append_pcm(spoken[at : at + FRAME]))
        while len(heard) < len(spoken) // 2:
            message = socket.receive_bytes()
            assert message[:1] == b"\x01"
            heard = np.concatenate([heard, reader.append_bytes(message[1:])])
        end(socket)
    assert np.abs(heard).max() > 1e-3


@pytest.mark.parametrize(("message", "code"), [(b"\x01" + b"no opus" * 9, 1007), ("text", 1003)])
def test_what_is_no_sound_ends_the_conversation_with_a_reason(
    client: TestClient, message: bytes | str, code: int
) -> None:
    with client.websocket_connect(CHAT) as socket:
        socket.receive_bytes()
        if isinstance(message, bytes):
            socket.send_bytes(message)
        else:
            socket.send_text(message)
        said, closed = last_words(socket)
    assert said[:1] == b"\x05"
    assert b"expected" in said
    assert closed == code
    assert client.get("/health").json()["sessions"] == 0


def test_one_caller_too_many_is_told_so(client: TestClient) -> None:
    with client.websocket_connect(CHAT) as first:
        first.receive_bytes()
        with client.websocket_connect(CHAT) as second:
            said, closed = last_words(second)
        end(first)
    assert (said[:1], closed) == (b"\x05", 1013)
    assert b"all 1 sessions are taken" in said


def last_words(socket: WebSocketTestSession) -> tuple[bytes, int]:
    """The last message before the server closes, and the code that it closes with."""
    said = b""
    try:
        while True:
            said = socket.receive_bytes()
    except WebSocketDisconnect as closed:
        return said, closed.code


def end(socket: WebSocketTestSession) -> None:
    """Make the server end it, and wait until it has."""
    socket.send_text("over")
    last_words(socket)
