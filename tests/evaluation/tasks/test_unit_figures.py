"""The benchmark of units on a corpus."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from speechlm.data.corpus import open_corpus
from speechlm.data.human import human_clips
from speechlm.evaluation.tasks import unit_figures
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.tasks.unit_figures import choose, other_voices, run_units


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings with made phones; two voices say the same, and one file is empty."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number, clip in enumerate(list(human_clips("answers").values())[:6]):
        (folder / clip.path.name).write_bytes(clip.path.read_bytes())
        rows.append(
            {
                "id": f"r{number}",
                "audio": clip.path.name,
                "text": f"word {number // 2}",
                "speaker": f"s{number % 2}",
                "phones": [["a", 0.0, 0.2], ["b", 0.2, 0.35]],
            }
        )
    (folder / "empty.wav").write_bytes(b"")
    rows.append({"id": "bad", "audio": "empty.wav"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rows(
    bundle_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Result]:
    found = list(run_units(_job(bundle_folder, corpus, tmp_path_factory.mktemp("out"))))
    return {row.variant or row.subset: row for row in found}


def _job(bundle_folder: Path, corpus: Path, output: Path) -> Job:
    system = System(str(bundle_folder / "tokenizer"))
    return Job(name="units", system=system, data=corpus, output=output, seed=1)


def test_every_figure_is_there_and_a_bad_recording_is_told(rows: dict[str, Result]) -> None:
    assert rows["failed"].error.startswith("1 of 7, the first bad:")
    assert rows["tokens-per-second"].value == pytest.approx(50, rel=0.05)
    assert rows["bits-per-second/fixed"].value == pytest.approx(250, rel=0.05)
    merged = rows["tokens-per-second/dedup"].value or 0
    run = rows["mean-run"].value or 0
    assert merged * run == pytest.approx(rows["tokens-per-second"].value)
    used, dead = rows["used"].value or 0, rows["dead"].value or 0
    assert used / 100 * 32 + dead == pytest.approx(32)
    assert 1 < (rows["perplexity"].value or 0) <= 32
    entropy = math.log2(rows["perplexity"].value or 0)
    expected = entropy * (rows["tokens-per-second"].value or 0)
    assert rows["bits-per-second/entropy"].value == pytest.approx(expected)
    for name in ("pnmi", "phone-purity", "cluster-purity"):
        low, high = rows[name].ci95 or (0, 0)
        assert low <= (rows[name].value or 0) <= high
    names = [*unit_figures.PERTURBATIONS, "other-voice"]
    for name in names:
        by_units = rows[f"unit-edit-distance/{name}/by-units"]
        by_frames = rows[f"unit-edit-distance/{name}/by-frames"]
        assert by_units.n == by_frames.n == 6
        assert 0 < (by_frames.value or 0) <= (by_units.value or 0)


def test_louder_noise_changes_more_units(rows: dict[str, Result]) -> None:
    found = [rows[f"unit-edit-distance/noise-{db}db/by-units"].value or 0 for db in (20, 10, 0)]
    assert found == sorted(found)


def test_the_same_seed_gives_the_same_rows_and_what_was_scored_is_kept(
    bundle_folder: Path, corpus: Path, tmp_path: Path, rows: dict[str, Result]
) -> None:
    job = _job(bundle_folder, corpus, tmp_path)
    first = list(run_units(job))
    assert [row.value for row in first] == [row.value for row in rows.values()]
    scores = tmp_path / "scores" / "units.jsonl"
    lines = scores.read_text().splitlines()
    scores.write_text("\n".join(lines[:4]) + "\n")
    assert list(run_units(job)) == first


def test_partners_say_the_same_in_another_voice(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = list(open_corpus(corpus))
    found = other_voices(recordings)
    assert {name: other.id for name, other in found.items()} == {
        "r0": "r1", "r1": "r0", "r2": "r3", "r3": "r2", "r4": "r5", "r5": "r4",
    }  # fmt: skip
    monkeypatch.setattr(unit_figures, "MOST_RECORDINGS", 3)
    some = choose(open_corpus(corpus), 1)
    assert len(some) == 3
    assert [one.id for one in some] == [one.id for one in choose(open_corpus(corpus), 1)]


def test_units_by_chance_tell_little_of_phones() -> None:
    """Drawn units share no more with phones than so few frames make them share."""
    generator = torch.Generator().manual_seed(1)
    pairs = torch.stack(
        [torch.randint(0, 5, (20_000,), generator=generator) for _ in range(2)], dim=1
    )
    found = unit_figures.count([pairs])
    told = unit_figures.agreement_with_phones(found.total(), found.kinds)
    assert float(told["pnmi"]) < 0.2
