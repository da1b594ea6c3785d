"""Every benchmark runs, agrees with its peer and writes what it found; nobody looks at times."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent / "benchmarks"
QUICK = ["--quick", "--threads", "1", "--out"]
ROWS = {"decoding": 9, "batching": 2, "scoring": 2, "latency": 3, "abx": 4, "gpu": 5}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a script as it would run: its folder comes first, and fairseq2 is not there."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "fairseq2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fairseq2", None)
    yield importlib.import_module
    for name in [path.stem for path in FOLDER.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ROWS)
def test_a_quick_run_writes_its_rows(
    name: str, script: Callable[[str], Any], tmp_path: Path
) -> None:
    script(name).main([*QUICK, str(tmp_path)])

    written = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert written["benchmark"] == name
    assert written["machine"]["threads"] >= 1
    assert len(written["rows"]) == ROWS[name]
    for row in written["rows"]:
        assert row["what"]
        assert row["met"] is None, "tiny shapes must not claim anything"


def test_a_peer_that_is_missing_is_named(
    script: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "moshi", None)
    with pytest.raises(SystemExit) as stopped:
        script("depth").main([*QUICK, str(tmp_path)])

    assert stopped.value.code == script("bench").CANNOT_RUN
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "moshi" in error
    assert "--help" in error
    with pytest.raises(SystemExit):
        script("depth").main(["--help"])
    assert "pip install" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_named(
    script: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script("gpu").main([])

    assert stopped.value.code == script("bench").CANNOT_RUN
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(find_spec("moshi") is None, reason="moshi is not installed")
@pytest.mark.filterwarnings("ignore")  # its dependencies'
def test_a_frame_of_codebooks_is_moshis(script: Callable[[str], Any], tmp_path: Path) -> None:
    script("depth").main([*QUICK, str(tmp_path)])

    written = json.loads((tmp_path / "depth.json").read_text(encoding="utf-8"))
    assert "equal" in written["rows"][0]["note"]


def test_an_unknown_subject_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "bench.py", "decode"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "decoding" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_may_bound_from_both_sides(script: Callable[[str], Any]) -> None:
    row = script("bench").Row

    assert row(what="ratio", value=2.0, target=2.0).met
    assert not row(what="ratio", value=1.9, target=2.0).met
    assert row(what="latency", value=190.0, target=200.0, at_most=True).met
    assert not row(what="latency", value=201.0, target=200.0, at_most=True).met
    assert row(what="figure", value=1.0).met is None
