"""The callers of one level, all in this process; and a server of one's own for them to call."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechlm.dialogue.load.caller import Call, Caller
from speechlm.dialogue.load.figures import JSON, level_figures
from speechlm.dialogue.load.questions import Question
from speechlm.dialogue.settings import TurnSettings
from speechlm.errors import SpeechLMError

START_S = 180.0
"""A server may take so long to load a bundle."""
STOP_S = 15.0
ADDRESS = re.compile(r"open https?://[^/\s:]+:(\d+)/")


def run_level(
    url: str,
    questions: Sequence[Question],
    num_callers: int,
    *,
    num_questions: int,
    breaks_in: float = 0.0,
    seed: int = 0,
    token: str | None = None,
    turns: TurnSettings | None = None,
    server_pid: int | None = None,
) -> tuple[JSON, list[Call]]:
    """Let so many callers talk at once until each has asked its questions.

    Args:
        url: Of the server, ``ws://host:port/v1/realtime``.
        questions: What there is to ask; the callers begin at different ones.
        num_questions: Of each caller.
        breaks_in: Share of answers that are interrupted.
        turns: How the server shall find turns; None for its own way.
        server_pid: Of a server on this machine, to tell what it used.

    Returns:
        The figures, and what each caller experienced.
    """
    callers = []
    for number in range(num_callers):
        first = number * num_questions
        asked = [questions[(first + at) % len(questions)] for at in range(num_questions)]
        callers.append(Caller(number, asked, breaks_in=breaks_in, seed=seed))
    detection = None if turns is None else turn_detection(turns)

    async def all_of_them() -> list[Call]:
        calls = (caller.run(url, token=token, turn_detection=detection) for caller in callers)
        return list(await asyncio.gather(*calls))

    wall, own, others = time.monotonic(), time.process_time(), cpu_s(server_pid)
    calls = asyncio.run(all_of_them())
    wall = time.monotonic() - wall
    now = cpu_s(server_pid)
    figures = level_figures(
        calls,
        generator_cpu=(time.process_time() - own) / wall,
        server_cpu=None if now is None or others is None else (now - others) / wall,
    )
    return figures, calls


def turn_detection(turns: TurnSettings) -> dict[str, Any]:
    """Turn settings in the protocol's words."""
    if turns.policy != "vad":
        return {"type": "semantic_vad"}
    return {
        "type": "server_vad",
        "threshold": turns.threshold,
        "prefix_padding_ms": round(1000 * turns.prefix_s),
        "silence_duration_ms": round(1000 * turns.silence_s),
    }


def realtime_url(given: str) -> str:
    """The endpoint of a server that was named by the address of its page, or by its own."""
    url = re.sub("^http", "ws", given.rstrip("/"))
    if not url.startswith(("ws://", "wss://")):
        url = f"ws://{url}"
    return url if "/v1/" in url else f"{url}/v1/realtime"


@contextmanager
def own_server(
    bundle: str, *, max_sessions: int, words: Sequence[str] = ()
) -> Iterator[tuple[str, int]]:
    """Serve a bundle on a free port of this machine; gives the endpoint and the server's process.

    Raises:
        SpeechLMError: It did not start; the message is what it said.
    """
    command = [sys.executable, "-m", "speechlm", "serve", bundle, "--port", "0"]
    command += ["--max-sessions", str(max_sessions), *words]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, text=True)
        try:
            port = _port(process, said)
            yield f"ws://127.0.0.1:{port}/v1/realtime", process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[str], said: Any) -> int:
    """Where a server listens, once it says so."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        running = process.poll() is None
        said.seek(0)
        text = said.read()
        if found := ADDRESS.search(text):
            return int(found[1])
        if not running:
            last = text.strip().rpartition("\n")[2]
            raise SpeechLMError(f"the server did not start: {last or 'it said nothing'}")
        time.sleep(0.05)
    raise SpeechLMError(f"expected a server that starts within {START_S:.0f} s, got none")


def cpu_s(pid: int | None) -> float | None:
    """Processor time of a process and its children, s; None where the system does not tell."""
    if pid is None:
        return None
    total = 0.0
    pids = [pid]
    try:
        while pids:
            folder = Path("/proc") / str(pids.pop())
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            for thread in (folder / "task").iterdir():
                pids += map(int, (thread / "children").read_text().split())
    except OSError:
        return None
    return total
