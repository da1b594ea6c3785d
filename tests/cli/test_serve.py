"""``speechlm serve``: what it says when it cannot start, that it serves, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("trustme")
pytest.importorskip("websockets")
pytest.importorskip("httpx")

import httpx
import numpy as np
from small_bundle import question
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speechlm.audio import load_audio
from speechlm.cli.main import main
from speechlm.dialogue.server import serving

TOKEN = "a-token-of-some-length"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
START_S = 120


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a start that fails says, one line."""
    assert main(["serve", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "there are no tokens: give --token-file"),
        (["--certificate", "c.pem"], "--certificate and --key go together"),
        (["--certificate", "c.pem", "--key", "k.pem"], "not a certificate with its key"),
        (["--certificate", "c", "--key", "k", "--self-signed"], "got both"),
        (["--origin", "example.org"], "expected --origin as https://example.org"),
        (["--token-file", "nowhere"], "nowhere: expected tokens"),
        (["--log", "nowhere/turns.jsonl"], "nowhere/turns.jsonl: No such file"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in complaint(capsys, "no-such-bundle", "--port", "0", *words)


def test_a_port_in_use_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use" in complaint(capsys, "none", "--port", port)


def test_a_bundle_that_is_not_there_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = complaint(capsys, str(tmp_path), "--port", "0")
    assert "is not a bundle: it holds no speechlm.json" in said


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "speechlm.dialogue.server.serving")
    monkeypatch.delattr("speechlm.dialogue.server.serving")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'speechlm[serve]'" in complaint(capsys, "none")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    folder: Path

    def said(self) -> str:
        return (self.folder / "said").read_text(encoding="utf-8")


def start(bundle: Path, folder: Path, *words: str) -> Served:
    """Start a server with a token and a log, and wait until it is ready."""
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n", encoding="utf-8")
    command = [sys.executable, "-m", "speechlm", "serve", str(bundle), "--port", "0"]
    command += ["--token-file", str(tokens), "--log", str(folder / "turns.jsonl"), *words]
    with (folder / "said").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"open https?://localhost:(\d+)/", (folder / "said").read_text("utf-8"))
        if found:
            return Served(process=process, port=int(found[1]), folder=folder)
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise AssertionError(f"it did not start: {(folder / 'said').read_text('utf-8')}")


def stop(server: Served) -> int:
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(60)
    finally:
        server.process.kill()


@pytest.fixture(scope="module")
def secure(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One behind TLS with a certificate of its own; the last test stops it."""
    words = ("--self-signed", "--answer-seconds", "2", "--verbose")
    server = start(bundle_folder, tmp_path_factory.mktemp("secure"), *words)
    try:
        yield server
    finally:
        stop(server)


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_it_serves_over_tls_with_the_token_alone(secure: Served) -> None:
    url = f"https://127.0.0.1:{secure.port}"
    with httpx.Client(base_url=url, verify=trusting()) as client:
        assert client.get("/health").json()["frame_ms"] > 0
        assert client.get("/v1/models").status_code == 401
        listed = client.get("/v1/models", headers=AUTHORIZED).json()
        assert [one["id"] for one in listed["data"]] == ["bundle"]


def test_a_message_of_more_than_16_mib_closes_with_1009(secure: Served) -> None:
    async def flood() -> int | None:
        url = f"wss://127.0.0.1:{secure.port}/v1/realtime"
        async with connect(url, ssl=trusting(), additional_headers=AUTHORIZED) as socket:
            await socket.recv()
            with suppress(ConnectionClosed):
                await socket.send("x" * (16 * 2**20 + 1))
                while True:
                    await socket.recv()
            return socket.close_code

    assert asyncio.run(flood()) == 1009


def test_a_wrong_token_opens_no_conversation(secure: Served) -> None:
    async def knock() -> int:
        url = f"wss://127.0.0.1:{secure.port}/v1/realtime"
        try:
            async with connect(url, ssl=trusting(), subprotocols=["realtime"]):  # type: ignore[list-item]
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    assert asyncio.run(knock()) == 401


def test_when_stopped_it_finishes_the_answer_lets_nobody_in_and_logs_only_figures(
    secure: Served,
) -> None:
    url = f"wss://127.0.0.1:{secure.port}/v1/realtime"
    wave = load_audio(question(), 24_000).numpy()
    sound = base64.b64encode((wave * 32767).astype("<i2").tobytes()).decode()

    async def talk() -> tuple[list[str], bytes]:
        kinds: list[str] = []
        heard = b""
        async with connect(url, ssl=trusting(), additional_headers=AUTHORIZED) as socket:
            await say(socket, "session.update", session=MANUAL)
            await say(socket, "input_audio_buffer.append", audio=sound)
            await say(socket, "input_audio_buffer.commit")
            await say(socket, "response.create")
            with suppress(ConnectionClosed):  # by the server, once it has said all
                while True:
                    event = json.loads(await socket.recv())
                    kinds.append(event["type"])
                    if event["type"] == "response.created":
                        secure.process.send_signal(signal.SIGTERM)
                        kinds.append(await late(url))
                    if event["type"] == "response.output_audio.delta":
                        heard += base64.b64decode(event["delta"])
        assert socket.close_code == 1012
        return kinds, heard

    kinds, heard = asyncio.run(talk())
    assert secure.process.wait(60) == 0
    assert "response.done" in kinds, "the answer was finished"
    assert "draining" in kinds, "nobody was let in meanwhile"
    assert np.abs(np.frombuffer(heard, "<i2")).max() > 0
    said, logged = secure.said(), (secure.folder / "turns.jsonl").read_text(encoding="utf-8")
    (turn,) = map(json.loads, logged.splitlines())
    assert turn["status"] in ("completed", "incomplete")
    assert {"decision_to_audio", "frame_p95"} <= set(turn)
    for secret in (TOKEN, sound[1000:1100], base64.b64encode(heard).decode()[1000:1100]):
        assert secret not in said
        assert secret not in logged


MANUAL = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


async def say(socket: Any, kind: str, **values: Any) -> None:
    await socket.send(json.dumps({"type": kind, **values}))


async def late(url: str) -> str:
    """What somebody hears who comes while the server is being stopped."""
    while True:
        async with connect(url, ssl=trusting(), additional_headers=AUTHORIZED) as socket:
            event = json.loads(await socket.recv())
        if event["type"] == "error":
            return str(event["error"]["code"])
