"""sSIMI as it is published, against a slow reading of its definition."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import CorpusError
from speechlm.evaluation.tasks import semantic_similarity
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.tasks.semantic_similarity import (
    hidden_states,
    pooled,
    read_semantic,
    run_ssimi,
)

WORDS = ("red", "blue", "two", "six", "king")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Five words, twice each; two data sets, one of similarity, one of relatedness."""
    clips = iter(human_clips("answers").values())
    gold: list[dict[str, Any]] = []
    for kind in ("synthetic", "librispeech"):
        (tmp_path / kind).mkdir()
        for word in WORDS:
            for voice in ("A", "B"):
                name = f"{word}{voice}"
                path = next(clips).path
                (tmp_path / kind / f"{name}.wav").write_bytes(path.read_bytes())
                told = voice if kind == "synthetic" else ""
                gold.append({"type": kind, "filename": name, "voice": told, "word": word})
    pairs: list[dict[str, Any]] = []
    for kind in ("synthetic", "librispeech"):
        for number, first in enumerate(WORDS):
            for second in WORDS[:number]:
                judged: dict[str, Any] = {"type": kind, "dataset": "one"}
                judged |= {"word_1": first, "word_2": second}
                score = (len(pairs) * 7) % 10
                pairs.append({**judged, "similarity": score, "relatedness": ""})
        pairs.append({**pairs[-1], "dataset": "two", "similarity": "", "relatedness": 2.5})
        pairs.append({**pairs[-1], "word_1": "red", "relatedness": 4.5})
        pairs.append({**pairs[-1], "word_2": "king", "relatedness": 1.5})
    write(tmp_path / "gold.csv", gold)
    write(tmp_path / "pairs.csv", pairs)
    return tmp_path


def _run(source: str, task: Path, output: Path) -> list[Result]:
    job = Job(name="ssimi", system=System(source), data=task, output=output, seed=1)
    return list(run_ssimi(job))


def test_correlations_are_those_of_the_definition(
    bundle_folder: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = pytest.importorskip("scipy.stats")
    monkeypatch.setattr(semantic_similarity, "NUM_DRAWS", 50)
    rows = _run(str(bundle_folder), task, tmp_path / "out")
    vectors = cache(partial(pooled, System(str(bundle_folder))))
    with (task / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    variant = "layer-1/mean"
    found = {}
    for kind in ("synthetic", "librispeech"):
        for dataset in ("one", "two"):
            human, apart = [], []
            for row in pairs:
                if (row["type"], row["dataset"]) != (kind, dataset):
                    continue
                human.append(float(row["similarity"] or row["relatedness"]))
                first, second = (
                    [vectors(task / kind / f"{row[word]}{voice}.wav")[variant] for voice in "AB"]
                    for word in ("word_1", "word_2")
                )
                if kind == "synthetic":
                    each = [float((a - b).norm()) for a, b in zip(first, second, strict=True)]
                else:
                    each = [float((a - b).norm()) for a in first for b in second]
                apart.append(np.mean(each))
            found[kind, dataset] = 100 * stats.spearmanr([-value for value in human], apart)[0]
    by_name = {(row.subset, row.variant): row for row in rows}
    for (kind, dataset), expected in found.items():
        row = by_name[f"type={kind},dataset={dataset}", variant]
        assert row.value == pytest.approx(expected, abs=1e-6)
        assert row.n == (10 if dataset == "one" else 3)
    for kind in ("synthetic", "librispeech"):
        one, two = found[kind, "one"], found[kind, "two"]
        mean = by_name[f"type={kind}", f"{variant}/mean"]
        assert mean.value == pytest.approx((one + two) / 2)
        weighted = by_name[f"type={kind}", f"{variant}/weighted"]
        assert weighted.value == pytest.approx((10 * one + 3 * two) / 13)
        low, high = mean.ci95 or (0, 0)
        assert low < high
    assert {name.partition("/")[0] for _, name in by_name} == {"layer-1", "unit-features"}
    assert _run(str(bundle_folder), task, tmp_path / "out") == rows


def test_a_recording_that_cannot_be_read_is_told(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic_similarity, "NUM_DRAWS", 20)
    (task / "synthetic" / "redA.wav").write_bytes(b"")
    rows = _run("mfcc", task, tmp_path / "out")
    (failed,) = [row for row in rows if row.subset == "failed"]
    assert "redA.wav: the file is empty" in failed.error
    # Four pairs of ten have "red" in them.
    whole = next(row for row in rows if row.subset == "type=synthetic,dataset=one")
    assert (whole.variant, whole.n) == ("mfcc/mean", 6)


def test_layers_are_those_of_the_model(model: SpeechLM) -> None:
    rate = model.tokenizer.sample_rate
    wave = load_audio(next(iter(human_clips("answers").values())).path, rate)
    units = model.encode(wave, rate)
    states = hidden_states(model, units)
    assert list(states) == ["layer-1"]
    assert states["layer-1"].shape == (units.codes.shape[1], 32)
    # The last layer's, normed, is what the head reads.
    lm = model.lm
    ids = lm.layout.encode(lm.vocabulary, {"speech": units.codes}).ids
    with torch.inference_mode():
        normed = lm.decoder.hidden(ids[None])[0]
        torch.testing.assert_close(
            lm.decoder.model.norm(states["layer-1"]),
            normed[(ids >= lm.vocabulary.first_unit).any(0)],
        )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "pairs.csv").unlink(), "pairs.csv is missing"),
        (lambda folder: (folder / "synthetic" / "redA.wav").unlink(), "redA.wav is missing"),
        (lambda folder: write(folder / "gold.csv", [{"type": "synthetic"}]), "expected columns"),
        (
            lambda folder: (folder / "pairs.csv").write_text(
                (folder / "pairs.csv")
                .read_text()
                .replace("synthetic,one,blue,red,0", "synthetic,one,blue,red,x")
            ),
            "synthetic/one without",
        ),
        (
            lambda folder: (folder / "pairs.csv").write_text(
                (folder / "pairs.csv").read_text().replace("one,blue", "one,green", 1)
            ),
            "expected recordings of 'green'",
        ),
    ],
)
def test_what_is_not_whole_is_refused(
    task: Path, spoil: Callable[[Path], object], message: str
) -> None:
    assert len(read_semantic(task)) == 26
    spoil(task)
    with pytest.raises(CorpusError, match=message):
        read_semantic(task)
