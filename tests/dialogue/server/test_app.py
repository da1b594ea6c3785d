"""The routes of the server, asked as clients ask them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import soundfile
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from speechlm import SpeechLM
from speechlm.dialogue.local import LocalService
from speechlm.dialogue.server.access import Access
from speechlm.dialogue.server.app import create_app
from speechlm.dialogue.server.settings import ServerSettings

TOKEN = "a-token-of-some-length"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
UNITS = [[3, 3, 3, 5, 5, 9, 9, 9, 9, 2] * 6]
HERE = "http://127.0.0.1:8000"
SOCKETS = "ws://127.0.0.1:8000"
Ask = Callable[..., TestClient]


@pytest.fixture
def ask(small_model: SpeechLM) -> Iterator[Ask]:
    """Makes clients of servers of the small bundle, each with a service of its own."""
    with ExitStack() as stack:

        def client(access: Access | None = None, **limits: Any) -> TestClient:
            service = LocalService(small_model, name="small")
            app = create_app(service, ServerSettings(model="small", **limits), access or Access())
            client = TestClient(app, base_url=HERE, raise_server_exceptions=False)
            # Service and requests share a loop, as they do in a server.
            stack.enter_context(client)
            assert client.portal is not None
            stack.enter_context(client.portal.wrap_async_context_manager(service))
            return client

        yield client


def error_of(response: Any) -> tuple[int, str]:
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"]
    assert "\n" not in body["message"]
    return response.status_code, body["code"]


def test_models_are_listed_as_openai_lists_them(ask: Ask) -> None:
    client = ask()
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["small"]
    assert client.get("/v1/models/small").json() == listed["data"][0]
    assert error_of(client.get("/v1/models/large")) == (404, "model_not_found")


def test_health_runs_a_frame_and_counts_sessions(ask: Ask) -> None:
    found = ask(max_sessions=3).get("/health").json()
    assert found["frame_ms"] > 0
    assert (found["status"], found["sessions"], found["max_sessions"]) == ("ok", 0, 3)


def test_health_is_bad_once_the_server_drains(ask: Ask) -> None:
    client = ask()
    client.app.state.service.drain()  # type: ignore[attr-defined]
    response = client.get("/health")
    assert error_of(response) == (503, "draining")
    assert response.headers["retry-after"]


def test_unknown_addresses_and_methods_are_refused_in_the_same_shape(ask: Ask) -> None:
    client = ask()
    assert error_of(client.get("/v1/completions")) == (404, "unknown_url")
    assert error_of(client.get("/v1/audio/speech")) == (405, "method_not_allowed")
    assert error_of(client.get("/static/../app.py")) == (404, "unknown_url")


def test_without_the_token_nothing_but_the_page_and_health_is_had(ask: Ask) -> None:
    client = ask(Access(tokens=(TOKEN,)))
    for path in ("/v1/models", "/v1/audio/speech", "/metrics", "/v1/nothing"):
        response = client.get(path)
        assert error_of(response) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers=AUTHORIZED).status_code != 401
    assert client.get("/health").status_code == 200
    assert client.get("/static/nothing.js").status_code == 404


@pytest.mark.parametrize("path", ["/v1/realtime?model=small", "/api/chat"])
def test_a_websocket_without_the_token_is_refused_before_it_opens(ask: Ask, path: str) -> None:
    client = ask(Access(tokens=(TOKEN,)))
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(SOCKETS + path),
    ):
        pass
    assert error_of(refused.value) == (401, "invalid_api_key")


def test_a_websocket_of_another_page_is_refused(ask: Ask) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        ask().websocket_connect(SOCKETS + "/v1/realtime", headers=headers),
    ):
        pass
    assert error_of(refused.value) == (403, "origin_not_allowed")


def test_pages_of_allowed_origins_may_read_answers_and_others_may_not(ask: Ask) -> None:
    client = ask(Access(origins=("https://page.example",)))
    wanted = {"Access-Control-Request-Method": "POST", "Origin": "https://page.example"}
    assert client.options("/v1/audio/speech", headers=wanted).status_code == 200
    answer = client.get("/v1/models", headers={"Origin": "https://page.example"})
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    other = client.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert error_of(other) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nothing", "/static/nothing.js"])
def test_every_response_keeps_browsers_to_this_server(ask: Ask, path: str) -> None:
    headers = ask().get(path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize("format", ["mp3", "opus", "flac", "wav", "pcm"])
def test_units_are_read_aloud_in_every_format(ask: Ask, format: str) -> None:
    response = ask().post("/v1/audio/speech", json={"units": UNITS, "response_format": format})
    assert response.status_code == 200
    if format == "pcm":
        samples = np.frombuffer(response.content, "<i2") / 32767
        assert response.headers["content-type"] == "audio/pcm"
    else:
        samples, rate = soundfile.read(io.BytesIO(response.content))
        assert rate == 24_000
    assert np.abs(samples).max() > 1e-3


def test_speech_as_events_is_the_same_speech(ask: Ask) -> None:
    client = ask()
    body = {"input": {"units": UNITS}, "response_format": "pcm", "voice": "alloy", "model": "x"}
    plain = client.post("/v1/audio/speech", json=body).content
    response = client.post("/v1/audio/speech", json={**body, "stream_format": "sse"})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    *deltas, done = map(json.loads, lines)
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == plain
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_seconds"] == pytest.approx(len(plain) / 48_000)
    assert len(base64.b64decode(deltas[0]["audio"])) < len(plain) / 2, "it begins before its end"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"input": "what is it"}, "input"),
        ({"units": []}, "units"),
        ({"units": [[1, "2"]]}, "units"),
        ({"units": [[1, True]]}, "units"),
        ({"units": [[1], [2]]}, "input"),
        ({"units": [[10**6]]}, "input"),
        ({"units": [[10**30]]}, "units"),
        ({"units": UNITS, "response_format": "aac"}, "response_format"),
        ({"units": UNITS, "response_format": ["mp3"]}, "response_format"),
        ({"units": UNITS, "stream_format": "mp3"}, "stream_format"),
        ({"units": UNITS, "speed": 9}, "speed"),
        ({"units": UNITS, "speed": "fast"}, "speed"),
        ({"units": UNITS, "voice": 7}, "voice"),
        ({"units": UNITS, "voice": {"id": "nobody"}}, "input"),
    ],
)
def test_speech_that_cannot_be_made_says_which_field(
    ask: Ask, body: dict[str, Any], param: str
) -> None:
    response = ask().post("/v1/audio/speech", json=body)
    status, _ = error_of(response)
    assert (status, response.json()["error"]["param"]) == (400, param)


def test_uploads_have_limits(ask: Ask) -> None:
    response = ask(max_upload_bytes=100).post("/v1/audio/speech", json={"input": "x" * 100})
    assert error_of(response) == (413, "too_large")


def test_a_bundle_without_text_transcribes_nothing_and_says_so(ask: Ask) -> None:
    response = ask().post("/v1/audio/transcriptions", files={"file": ("a.wav", b"x")})
    assert error_of(response) == (400, "unsupported_endpoint")


def test_a_client_secret_is_made_for_pages_and_opens_nothing_else(ask: Ask) -> None:
    client = ask(Access(tokens=(TOKEN,)))
    session = {"type": "realtime", "instructions": "be brief"}
    body = {"session": session, "expires_after": {"anchor": "created_at", "seconds": 60}}
    path = "/v1/realtime/client_secrets"
    assert error_of(client.post(path, json=body)) == (401, "invalid_api_key")
    made = client.post(path, json=body, headers=AUTHORIZED).json()
    assert made["value"].startswith("ek_")
    assert made["session"]["instructions"] == "be brief"
    with_secret = {"Authorization": f"Bearer {made['value']}"}
    assert error_of(client.get("/v1/models", headers=with_secret)) == (401, "invalid_api_key")
    assert client.post(path, headers=AUTHORIZED).status_code == 200, "a body is optional"


@pytest.mark.parametrize(
    "body",
    [
        {"expires_after": {"seconds": 9}},
        {"expires_after": {"seconds": "long"}},
        {"expires_after": 60},
        {"session": {"type": "transcription"}},
        {"session": [1]},
    ],
)
def test_client_secrets_of_other_shapes_are_refused(ask: Ask, body: dict[str, Any]) -> None:
    response = ask().post("/v1/realtime/client_secrets", json=body)
    assert error_of(response) == (400, "invalid_value")


def test_moshis_protocol_tells_clients_of_other_bundles_what_to_use(ask: Ask) -> None:
    with ask().websocket_connect(SOCKETS + "/api/chat") as socket:
        message = socket.receive_bytes()
        assert message[:1] == b"\x05"
        assert b"use /v1/realtime" in message
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_bytes()
        assert closed.value.code == 1008


def test_figures_are_shown_as_prometheus_reads_them(ask: Ask) -> None:
    client = ask(Access(tokens=(TOKEN,)))
    client.get("/v1/models")
    shown = client.get("/metrics", headers=AUTHORIZED).text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(shown)
        for sample in family.samples
    }
    assert found["speechlm_refusals_total", "invalid_api_key"] == 1
    assert found[("speechlm_sessions",)] == 0
    assert found["speechlm_bytes_total", "out"] > 0
    assert TOKEN not in shown
