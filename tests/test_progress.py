import io
import sys

import pytest

from speechlm import progress as module
from speechlm.progress import progress, say


def test_elsewhere_than_on_a_terminal_lines_are_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.0)
    with progress("tokenizing", 3, "recordings") as advance:
        advance()
        advance(2)
    out, err = capsys.readouterr()
    first, second, last = err.splitlines()
    assert out == ""
    assert first.startswith("tokenizing: 1 of 3 recordings, ")
    assert second == "tokenizing: 3 of 3 recordings, 0 s left"
    assert last.startswith("tokenizing: 3 recordings in ")
    assert "\x1b" not in err


def test_quick_work_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("tokenizing", 100, "recordings") as advance:
        for _ in range(100):
            advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_work_that_failed_does_not_say_that_it_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="no"), progress("tokenizing", 3, "recordings"):
        raise ValueError("no")
    assert capsys.readouterr().err == ""


def test_nothing_to_do_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("tokenizing", 0, "recordings") as advance:
        advance(0)
    assert "tokenizing: 0 recordings" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("tokenizing", 2, "recordings") as advance:
        advance(2)
    assert "2/2" in terminal.getvalue()
    assert "recordings" in terminal.getvalue()


def test_results_and_remarks_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    say("a remark")
    assert capsys.readouterr() == ("", "a remark\n")
