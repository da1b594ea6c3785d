"""Figures of pairs against what ZeroSpeech's own toolkit made of the same scores."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import soundfile

from speechlm.evaluation.tasks.items import figure, subsets
from speechlm.evaluation.tasks.pair_accuracy import make_item
from speechlm.evaluation.tasks.pairs import READERS

FREQUENCIES = (0, 2, 3, 7, 12, 50, 70, 200, 5000)
"""Of words, none at the edge of a band."""


def made_gold(task: str) -> list[dict[str, Any]]:
    """Rows of a gold file with a score each: uneven voices, ties, kinds of unequal size."""
    draw = random.Random(f"gold {task}")
    rows: list[dict[str, Any]] = []
    for number in range(40):
        kind = draw.choices(["anaphora", "agreement", "npi"], [6, 3, 1])[0]
        about: dict[str, Any] = {"id": number % 25 if task == "sblimp" else number}
        if task == "sblimp":
            about |= {"type": kind, "subtype": f"{kind}-{number // 25}"}
        else:
            about |= {"frequency": draw.choice(FREQUENCIES), "length": 4}
        for voice in draw.sample(["A", "B", "C"], draw.randint(1, 3)):
            for correct in (1, 0):
                name = f"{task}{number}{voice}{correct}"
                score = -float(draw.randint(1, 6)) + correct * draw.choice([0, 1, 1])
                rows.append({"filename": name, "voice": voice, "correct": correct, **about})
                rows[-1] |= {"word": name, "phones": name, "transcription": name, "score": score}
    return rows


def measured(task: str, folder: Path) -> dict[str, float]:
    """Our figures of the same pairs and scores, by subset."""
    rows = made_gold(task)
    with (folder / "gold.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        soundfile.write(folder / f"{row['filename']}.wav", np.full(400, 0.1), 16_000)
    scores = {row["filename"]: row["score"] for row in rows}
    items = [
        make_item(pair, {"sum": (scores[pair.positive.stem], scores[pair.negative.stem])})
        for pair in READERS[task](folder)
    ]
    found = {}
    for subset, part in subsets(items).items():
        value = figure(part, "sum", seed=1)
        assert value is not None
        found[subset] = value.value
    return found


def by_definition(
    rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> dict[tuple[Any, ...], float]:
    """The mean over voices of each item: 1, a half for a tie, or 0."""
    items: dict[tuple[Any, ...], list[float]] = {}
    scores = {(*(row[key] for key in keys), row["voice"], row["correct"]): row for row in rows}
    for (*key, correct), row in scores.items():
        if correct == 1:
            far = row["score"] - scores[(*key, 0)]["score"]
            items.setdefault(tuple(key[:-1]), []).append(50.0 if far == 0 else 100.0 * (far > 0))
    return {key: mean(values) for key, values in items.items()}


TOOLKIT = {
    "swuggy": {
        "": 68.125,
        "in-vocabulary": 67.3423423,
        "frequency=oov": 77.7777778,
        "frequency=1-5": 63.0952381,
        "frequency=6-20": 68.3333333,
        "frequency=21-100": 59.5238095,
        "frequency=>100": 73.0769231,
    },
    "sblimp": {
        "": 61.6666667,
        "type=agreement": 56.9444444,
        "type=anaphora": 65.3508772,
        "type=npi": 66.6666667,
    },
}
"""What ``zerospeech/benchmarks`` made of these scores (``lexical.py`` and ``syntactic.py``)."""


@pytest.mark.parametrize("task", TOOLKIT)
def test_figures_are_the_toolkits(task: str, tmp_path: Path) -> None:
    assert measured(task, tmp_path) == pytest.approx(TOOLKIT[task], abs=1e-6)


def test_voices_count_within_an_item_and_items_count_once(tmp_path: Path) -> None:
    """The sentence figure is over items, not over types: those of many sentences count more."""
    rows = made_gold("sblimp")
    items = by_definition(rows, ("type", "subtype", "id"))
    whole = measured("sblimp", tmp_path)[""]
    assert whole == pytest.approx(mean(items.values()))
    types: dict[str, list[float]] = {}
    for (kind, *_), value in items.items():
        types.setdefault(kind, []).append(value)
    assert abs(whole - mean(mean(values) for values in types.values())) > 0.1
