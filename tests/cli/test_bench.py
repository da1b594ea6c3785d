"""``speechlm bench serve``: against a real server, and what it says where it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("websockets")
pytest.importorskip("silero_vad")

from small_bundle import question

from speechlm.cli.main import main
from speechlm.dialogue.load.running import cpu_s, own_server
from speechlm.errors import SpeechLMError


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "wavs"
    folder.mkdir()
    shutil.copy(question(), folder)
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected the URL of a server, or --bundle"),
        (["localhost:1", "--bundle", "b"], "and not both"),
        (["localhost:1", "--judge"], "--judge needs questions whose answers are known"),
        (["localhost:1", "--barge-in", "2"], "expected a share within 0..1"),
        (["localhost:1", "--callers", "1,0"], "expected a whole number above 0"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    capsys: pytest.CaptureFixture[str], recordings: Path, words: list[str], message: str
) -> None:
    assert main(["bench", "serve", *words, "--recordings", str(recordings)]) == 2
    assert message in capsys.readouterr().err


def test_a_server_that_is_not_there_is_a_failure(
    capsys: pytest.CaptureFixture[str], recordings: Path
) -> None:
    words = ["bench", "serve", "127.0.0.1:9", "--callers", "2", "--recordings", str(recordings)]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "no caller got an answer: unreachable" in said.err
    assert "sessions held at p95 below the frame: 0" in said.out


def test_a_server_that_does_not_start_is_told() -> None:
    with (
        pytest.raises(SpeechLMError, match=r"did not start: .*expected a port"),
        own_server("bundle", max_sessions=1, words=["--port", "none"]),
    ):
        pass


def test_callers_of_a_server_are_measured(
    capsys: pytest.CaptureFixture[str],
    recordings: Path,
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPEECHLM_TOKENS", "a-token-of-some-length")
    words = ["--answer-seconds", "0.4"]
    with own_server(str(bundle_folder), max_sessions=2, words=words) as (url, pid):
        asked = ["--callers", "2", "--questions", "1", "--turns", "quick"]
        asked += ["--recordings", str(recordings), "-o", str(tmp_path)]
        assert main(["bench", "serve", url, *asked]) == 0
        used = cpu_s(pid)
        monkeypatch.delenv("SPEECHLM_TOKENS")
        assert main(["bench", "serve", url, *asked]) == 1
    assert used is None or used > 0
    assert cpu_s(pid) is None, "the server is gone"
    said = capsys.readouterr()
    assert "sessions held at p95 below the frame:" in said.out
    assert "no caller got an answer: http_401" in said.err
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    (level,) = found["levels"]
    assert level["refusals"] == {"http_401": 2}, "of the second call"
