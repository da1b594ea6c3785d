"""What tests of listening tests share: systems' recordings, and answers as the page saves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechlm.evaluation.listening.making import order_of

Judge = Callable[[str, str], int]
"""Of a system and an item: how good a listener finds it."""
Write = Callable[..., Path]


@pytest.fixture
def systems(tmp_path: Path) -> list[Path]:
    """Three systems of four short recordings, each louder and noisier than the one before."""
    draw = np.random.default_rng(0)
    folders = []
    for number, name in enumerate(("human", "decent", "awful")):
        folder = tmp_path / name / "sub"
        folder.mkdir(parents=True)
        for item in range(4):
            wave = np.sin(np.arange(1600) * (0.1 + 0.05 * item)) * 0.1 * (number + 1)
            wave += draw.normal(size=1600) * 0.02 * number
            soundfile.write(folder / f"{item}.wav", wave, 16_000)
        folders.append(folder.parent)
    return folders


@pytest.fixture
def write_answers(tmp_path: Path) -> Write:
    """Write the file that the page saves for a listener who hears by ``judge``."""

    def write(
        key: Mapping[str, Any],
        listener: str,
        judge: Judge,
        *,
        most: int = 1000,
        checks_passed: bool = True,
        name: str = "",
    ) -> Path:
        answers = []
        number = order_of(listener, len(key["orders"]))
        for index, *places in key["orders"][number][:most]:
            trial = key["trials"][index]
            clips = [trial["clips"][place] for place in places]
            if trial["id"] in key["checks"]:
                wanted = key["checks"][trial["id"]]
                scores = [wanted[place] for place in places] if len(wanted) > 1 else list(wanted)
                if not checks_passed:
                    # A value of the scale, but another one.
                    values = [value for value, _ in key["scale"]]
                    scores = [values[values.index(scores[0]) - 1]]
            else:
                heard = [judge(**key["clips"][clip]) for clip in clips]
                paired = key["kind"] in ("ab", "cmos")
                scores = [heard[1] - heard[0]] if paired else heard
                if key["kind"] == "ab":
                    scores = [int(np.sign(scores[0]))]
            answers.append({"trial": trial["id"], "clips": clips, "scores": scores, "seconds": 1})
        path = tmp_path / f"answers-{name or listener}.json"
        sent = {"format": key["format"], "test": key["test"], "kind": key["kind"]}
        sent |= {"listener": listener, "order": number, "begun": "", "saved": ""}
        path.write_text(json.dumps({**sent, "answers": answers}), encoding="utf-8")
        return path

    return write
