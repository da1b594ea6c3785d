"""``doctor``: what is here, what cannot run and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechlm import __version__, doctor
from speechlm.cli.main import main


def test_for_people_it_names_versions_machine_and_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"speechlm:  {__version__}" in shown
    for fact in ("torch 2.", "cores", "GB free", "devices:", "train", "evaluate", "corpus", "demo"):
        assert fact in shown


def test_for_programs_it_is_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json", "--folder", str(tmp_path / "not" / "yet")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cpu"]["cores"] >= 1
    assert found["disk"]["folder"] == str(tmp_path)
    assert found["disk"]["free_gb"] > 0
    assert {"command", "ready", "reason", "remedy"} == set(found["abilities"][0])


def test_a_missing_extra_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, "pocketsphinx")
    rows = {row.command: row for row in doctor.abilities(doctor.examine(Path()))}
    assert not rows["evaluate"].ready
    assert rows["evaluate"].reason == "pocketsphinx is not installed"
    assert rows["evaluate"].remedy == "pip install 'speechlm[evaluate]'"
    assert rows["fit, tokenize, generate, resynthesize"].ready
    assert not rows["demo"].ready


def test_a_broken_package_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.import_module

    def broken(name: str) -> object:
        if name == "torchaudio.functional":
            raise OSError("undefined symbol: f\nmore")
        return real(name)

    monkeypatch.setattr(doctor, "import_module", broken)
    rows = {row.command: row for row in doctor.abilities(doctor.examine(Path()))}
    assert "undefined symbol: f)" in rows["train"].reason


def test_too_little_disk_or_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.examine(Path())
    found["disk"]["free_gb"] = 0.4
    found["memory_gb"]["available"] = 0.9
    rows = {row.command: row for row in doctor.abilities(found)}
    assert rows["disk"].reason.startswith("0.4 GB free")
    assert rows["memory"].reason.startswith("0.9 GB free")


def test_a_system_that_says_nothing_of_itself_is_survived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_lines", lambda path: [])
    assert doctor.cpu_features() == []
    assert doctor.cpu_name()
    assert doctor.memory_gb()["available"] is None


def lacking(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = doctor.import_module

    def import_module(name: str) -> object:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(doctor, "import_module", import_module)
