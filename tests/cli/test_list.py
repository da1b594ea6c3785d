"""``list``: what can be named elsewhere."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint

import pytest

from speechlm import plugins
from speechlm.cli.main import main


def test_everything_is_listed_with_a_line_on_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "tokenizers:",
        "vocoders:",
        "configs:",
    ]
    for name in ("logmel-kmeans", "centroid-mel", "demo.yaml"):
        (row,) = [line for line in lines if line.split()[0].endswith(name)]
        assert len(row.split(maxsplit=1)[1]) > 20


def test_one_kind_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "vocoders"]) == 0
    assert re.match(r"vocoders:\n(  \S+ .*\n)*  centroid-mel ", capsys.readouterr().out)


def test_a_plugin_that_cannot_be_loaded_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint(name="broken", value="no_such_package:X", group="speechlm.tokenizers")
    monkeypatch.setattr(plugins, "available", lambda group: {"broken": broken})
    assert main(["list", "tokenizers"]) == 0
    assert "cannot be loaded: " in capsys.readouterr().out


def test_an_empty_kind_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugins, "available", lambda group: {})
    main(["list", "tokenizers"])
    assert capsys.readouterr().out == "tokenizers: none\n"
