"""A person at the page: Chromium with a recording for a microphone, and what it plays judged."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechlm.audio import resample

pytestmark = pytest.mark.slow

RATE = 48_000
SILENCE_S = 3.0
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
CORPUS = Path(os.environ.get("SPEECHLM_CORPUS", ""))
BUNDLE = os.environ.get("SPEECHLM_BUNDLE")


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """A recording to ask with, the right answer, and all answers."""
    if not CHROMIUM:
        pytest.skip("needs chromium")
    if not BUNDLE or not (CORPUS / "corpus.jsonl").is_file():
        pytest.skip("needs a trained bundle in SPEECHLM_BUNDLE and its corpus in SPEECHLM_CORPUS")
    pytest.importorskip("websockets")
    pytest.importorskip("pocketsphinx")
    lines = (CORPUS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = {row["id"]: row["text"] for row in rows}
    asked = next(row for row in rows if row.get("reply") and row.get("split") == "test")
    sound, rate = soundfile.read(CORPUS / asked["audio"], dtype="float32")
    silence = np.zeros(int(SILENCE_S * RATE), np.float32)
    asked_sound = resample(torch.from_numpy(sound), rate, RATE).numpy()
    file = tmp_path_factory.mktemp("asked") / "question.wav"
    soundfile.write(file, np.concatenate([silence, asked_sound, silence]), RATE, "PCM_16")
    answers = sorted({texts[row["reply"]] for row in rows if row.get("reply")})
    return file, texts[asked["reply"]], answers


@pytest.fixture
def server() -> Iterator[str]:
    """The address of the real server."""
    command = [sys.executable, "-m", "speechlm", "serve", str(BUNDLE), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = next((line for line in process.stderr if "ready" in line), "")
        assert ready, "the server did not start"
        yield ready.split("open ")[1].split()[0]
        process.terminate()


@pytest.fixture
def browser(question: tuple[Path, str, list[str]], tmp_path: Path) -> Iterator[str]:
    """The address of a browser's tab, for its DevTools protocol."""
    command = [
        CHROMIUM,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
        f"--use-file-for-fake-audio-capture={question[0]}%noloop",
        "--autoplay-policy=no-user-gesture-required",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "DevTools listening on" in line), "")
        assert line, "chromium did not start"
        yield line.split("listening on ")[1].strip()
        process.terminate()


class Tab:
    """One page of a browser."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._session: dict[str, str] = {}
        self.errors: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        order = {"id": number, "method": method, "params": params, **self._session}
        await self._socket.send(json.dumps(order))
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(answer["params"]))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def open(self, address: str) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = {"sessionId": attached["sessionId"]}
        await self.call("Runtime.enable")
        await self.call("Log.enable")
        await self.call("Page.navigate", url=address)

    async def evaluate(self, expression: str) -> Any:
        done = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True
        )
        return done["result"].get("value")

    async def wait_for(self, expression: str) -> None:
        async with asyncio.timeout(60):
            while not await self.evaluate(expression):
                await asyncio.sleep(0.2)


BYTES = """(() => {
  const { output } = window.speechlm.recording();
  const bytes = new Uint8Array(output.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) {
    text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  }
  return btoa(text);
})()"""


def test_a_question_is_asked_and_the_answer_that_is_played_is_right(
    question: tuple[Path, str, list[str]], server: str, browser: str
) -> None:
    from websockets.asyncio.client import connect

    from speechlm.evaluation.judge import GrammarJudge

    async def ask() -> tuple[Any, str, list[str]]:
        async with connect(browser, max_size=None) as socket:
            tab = Tab(socket)
            await tab.open(server)
            await tab.wait_for("!!window.speechlm")
            await tab.evaluate("document.getElementById('orb').click()")
            await tab.wait_for("window.speechlm.turns()[0]?.answer?.status === 'completed'")
            turn = await tab.evaluate("window.speechlm.turns()[0]")
            return turn, await tab.evaluate(BYTES), tab.errors

    _, right, answers = question
    turn, encoded, errors = asyncio.run(ask())
    played = torch.from_numpy(np.frombuffer(base64.b64decode(encoded), np.float32).copy())
    sounding = played.abs().gt(1e-3).nonzero().flatten()
    heard = played[sounding[0] : sounding[-1] + 1]
    assert errors == []
    assert turn["answer"]["heard"] == turn["answer"]["samples"]
    assert GrammarJudge(answers).transcribe(heard, 24_000) == right
