"""Every file in configs/ loads, and says how to run it and what to expect."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechlm.config import load_config
from speechlm.errors import ConfigError
from speechlm.presets import preset, presets


@pytest.mark.parametrize("path", presets(), ids=lambda path: path.stem)
def test_every_preset_loads_and_is_documented(path: Path) -> None:
    load_config(path)
    text = path.read_text(encoding="utf-8")
    comment = text[: text.index("\n\n") if "\n\n" in text else None]
    assert "speechlm " in comment
    assert "Expected" in comment
    assert presets()[path]


@pytest.mark.parametrize("path", presets(), ids=lambda path: path.stem)
def test_presets_hold_differences_only(path: Path) -> None:
    default = load_config()
    for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if not isinstance(value, dict):
            assert value != getattr(default, key)
            continue
        for inner, given in value.items():
            assert given != getattr(getattr(default, key), inner), f"{key}.{inner} is the default"


def test_presets_write_to_folders_of_their_own() -> None:
    outputs = {path.stem: load_config(path).output for path in presets()}
    assert outputs.pop("demo-vocoder") == outputs["demo"], "a step of that run"
    assert len(set(outputs.values())) == len(outputs)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown configuration 'dmeo', known: .*demo"):
        preset("dmeo")
