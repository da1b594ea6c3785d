"""From answers as the page saves them to figures, and who is left out on the way."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.listening.analysis import (
    analyse,
    crossed_interval,
    difference_p,
    listening_table,
)
from speechlm.evaluation.listening.answers import read_key
from speechlm.evaluation.listening.command import add_arguments, listen
from speechlm.evaluation.listening.making import ANCHOR, make_test
from speechlm.evaluation.tasks.results import read_results


class Write(Protocol):
    def __call__(self, key: object, listener: str, judge: object, **more: object) -> Path: ...


QUALITY = {"human": 5, "decent": 4, "awful": 2}


def judge(system: str, item: str) -> int:
    return QUALITY[system] - (item == "sub/3")


def test_means_of_mos_are_those_of_the_answers(
    systems: list[Path], write_answers: Write, tmp_path: Path
) -> None:
    make_test(systems, tmp_path / "test", "mos", checks=0)
    key = read_key(tmp_path / "test")
    answers = [write_answers(key, f"listener {n}", judge) for n in range(6)]
    report = analyse(tmp_path / "test", answers, tmp_path / "out")
    for name, value in (("human", 4.75), ("decent", 3.75), ("awful", 1.75)):
        row = report["systems"][name]
        assert (row["value"], row["n"]) == (value, 24)
        assert row["ci95"][0] < value <= row["ci95"][1]
        (result,) = read_results(tmp_path / "out" / "systems" / name)
        assert (result.name, result.value) == ("listen-mos/mean", value)
        assert result.data_sha256 == key["data_sha256"]
    assert report["alpha"] == {"interval": 1, "ordinal": 1}
    apart = {(row["system"], row["against"]): row for row in report["differences"]}
    assert apart["awful", "decent"]["value"] == -2
    assert apart["awful", "decent"]["p_sign"] == pytest.approx(2 / 2**24)
    # Four recordings can be turned in 16 ways, two of which are as far off.
    assert apart["awful", "decent"]["p"] == pytest.approx(1 / 8, abs=0.02)
    assert apart["awful", "decent"]["p_holm"] == pytest.approx(3 / 8, abs=0.06)
    assert json.loads((tmp_path / "out" / "listening.json").read_text())["kind"] == "mos"


@pytest.mark.parametrize(("kind", "good", "bad"), [("cmos", -1, -3), ("ab", 0, 0)])
def test_pairs_are_judged_against_the_first_system_however_they_were_heard(
    kind: str, good: float, bad: float, systems: list[Path], write_answers: Write, tmp_path: Path
) -> None:
    make_test(systems, tmp_path / "test", kind, checks=0)  # type: ignore[arg-type]
    key = read_key(tmp_path / "test")
    answers = [write_answers(key, name, judge) for name in ("anna", "ben", "eva")]
    report = analyse(tmp_path / "test", answers, tmp_path / "out")
    assert report["against"] == "human"
    assert {name: row["value"] for name, row in report["systems"].items()} == {
        "decent": good,
        "awful": bad,
    }
    (result,) = read_results(tmp_path / "out" / "systems" / "awful")
    variant = "mean" if kind == "cmos" else "preference"
    assert result.name == f"listen-{kind}/{variant}/against=human"


def test_who_does_not_find_the_reference_is_left_out(
    systems: list[Path], write_answers: Write, tmp_path: Path
) -> None:
    make_test(systems, tmp_path / "test", "mushra", checks=0)
    key = read_key(tmp_path / "test")
    fine = {"human": 100, "decent": 70, "awful": 40, ANCHOR: 20}
    answers = [
        write_answers(key, "anna", lambda system, item: fine[system]),
        # One of four trials is more than 15 %.
        write_answers(
            key,
            "ben",
            lambda system, item: fine[system] - 11 * (item == "sub/0" and system[0] == "h"),
        ),
    ]
    report = analyse(tmp_path / "test", answers, tmp_path / "out")
    assert report["listeners"]["missed_reference"] == ["ben"]
    assert report["listeners"]["used"] == 1
    assert {name: row["value"] for name, row in report["systems"].items()} == fine
    assert [(row["system"], row["against"]) for row in report["differences"]] == [
        ("awful", "decent")
    ]


def test_failed_checks_incomplete_and_repeated_answers_are_counted(
    systems: list[Path], write_answers: Write, tmp_path: Path
) -> None:
    pytest.importorskip("espeakng_loader")
    make_test(systems, tmp_path / "test", "mos", checks=2)
    key = read_key(tmp_path / "test")
    answers = [
        write_answers(key, "anna", judge),
        write_answers(key, "ben", lambda system, item: 1, checks_passed=False),
        write_answers(key, "eva", judge, most=5),
        write_answers(key, "eva", judge, most=3, name="eva again"),
    ]
    report = analyse(tmp_path / "test", answers, tmp_path / "out")
    assert report["listeners"] == {
        "sent": 3,
        "used": 2,
        "failed_checks": ["ben"],
        "missed_reference": [],
        "incomplete": 1,
        "files_left_out": 1,
    }
    assert sum(row["n"] for row in report["systems"].values()) in (12 + 3, 12 + 4, 12 + 5)
    said = "\n".join(listening_table(report))
    assert "failed a check of attention: ben" in said
    assert "1 of those used did not answer all" in said
    with pytest.raises(InputError, match="of 1 listeners none is left: 1 failed"):
        analyse(tmp_path / "test", answers[1:2], tmp_path / "out")


def test_answers_that_the_page_cannot_have_saved_are_refused(
    systems: list[Path], write_answers: Write, tmp_path: Path
) -> None:
    make_test(systems, tmp_path / "test", "mos", checks=0)
    key = read_key(tmp_path / "test")
    path = write_answers(key, "anna", judge)
    right = json.loads(path.read_text())
    answer = right["answers"][0]
    for change, said in (
        ({"test": "another"}, "answers to the test another"),
        ({"format": "speechlm-listening/0"}, "expected the format"),
        ({"listener": "ben"}, "not what the page asked ben"),
        ({"answers": [{**answer, "scores": [6]}]}, "answers of the scale, got"),
        ({"answers": [{**answer, "scores": [4.5]}]}, "answers of the scale, got"),
        ({"answers": [answer] * 13}, "13 answers to 12 trials"),
        ({"answers": [{}]}, "not the answers of a listening test"),
        ({"answers": None}, "not the answers of a listening test"),
    ):
        path.write_text(json.dumps({**right, **change}))
        with pytest.raises(CorpusError, match=said):
            analyse(tmp_path / "test", [path], tmp_path / "out")
    path.write_text("[]")
    with pytest.raises(CorpusError, match="not the answers"):
        analyse(tmp_path / "test", [path], tmp_path / "out")
    with pytest.raises(CorpusError, match="cannot be read"):
        analyse(tmp_path / "test", [tmp_path / "none.json"], tmp_path / "out")
    with pytest.raises(InputError, match="got none"):
        analyse(tmp_path / "test", [], tmp_path / "out")
    with pytest.raises(InputError, match=r"key\.json is missing"):
        analyse(tmp_path, [path], tmp_path / "out")


def test_intervals_hold_the_truth_where_listeners_and_recordings_vary() -> None:
    draw = np.random.default_rng(0)
    held, narrow, found = 0, 0, 0
    for seed in range(100):
        table = draw.normal(size=(12, 1)) + draw.normal(size=(1, 12)) + draw.normal(size=(12, 12))
        table[draw.random(table.shape) < 0.2] = np.nan
        low, high = crossed_interval(table, seed=seed)
        held += low <= 0 <= high
        found += difference_p(table, seed=seed) < 0.05 if seed < 40 else 0
        # As if all answers were independent: what is often done, and holds it far too rarely.
        spread = 1.96 * np.nanstd(table) / np.sqrt((~np.isnan(table)).sum())
        narrow += abs(np.nanmean(table)) <= spread
    assert held >= 88
    assert found <= 6
    assert narrow < 75


def test_neither_one_listener_nor_one_recording_makes_a_difference() -> None:
    draw = np.random.default_rng(0)
    table = 1 + 0.3 * draw.normal(size=(10, 10))
    assert difference_p(table, seed=1) < 0.01
    assert difference_p(table[:1], seed=1) == 1
    assert difference_p(table[:, :1], seed=1) == 1
    one = np.zeros((10, 10))
    one[0] = 5
    assert difference_p(one, seed=1) == 1


def test_the_command_makes_and_analyses(
    systems: list[Path], write_answers: Write, tmp_path: Path
) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(
        ["--kind", "ab", "--checks", "0", "--question", "Which?", "--output", str(tmp_path / "t")]
    )
    said = list(listen(["make", *map(str, systems)], args, 1))
    assert any("key.json" in line for line in said)
    key = read_key(tmp_path / "t")
    assert (key["question"], key["kind"]) == ("Which?", "ab")
    answers = write_answers(key, "anna", judge)
    args = parser.parse_args([])
    said = list(listen(["analyse", str(tmp_path / "t"), str(answers)], args, 1))
    assert said[-1] == str(tmp_path / "t" / "analysis" / "listening.json")
    with pytest.raises(InputError, match="expected 'listen make"):
        list(listen(["mend"], args, 1))
