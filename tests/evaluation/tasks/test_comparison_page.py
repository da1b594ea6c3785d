"""Evaluations stand side by side on one page: figures, differences, what is not alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from speechlm.errors import InputError
from speechlm.evaluation.tasks.compare import Evaluated, changes, compare, comparison_table
from speechlm.evaluation.tasks.comparison_page import write_comparison
from speechlm.evaluation.tasks.items import RIGHT, WRONG, Item, figure
from speechlm.evaluation.tasks.journal import SCORES_FOLDER, Journal
from speechlm.evaluation.tasks.results import Result, Subject, write_results

SHA = "0123456789abcdef" * 4


def write_evaluation(
    folder: Path, items: Sequence[Item], rows: Sequence[Result] = (), torch: str = "2.9.1"
) -> Path:
    """What a run of one benchmark, ``words``, leaves in a folder; and some rows beside it."""
    subject = Subject(model=folder.name, tokenizer="units", versions={"torch": torch})
    blank = Result(metric="words", variant="sum", data_sha256=SHA, seed=1, subject=subject)
    journal = Journal(
        folder / SCORES_FOLDER / "words.jsonl", {"model": folder.name, "data_sha256": SHA}
    )
    assert len(list(journal.extend(item.to_dict() for item in items))) == len(items)
    own = []
    for subset in ("", "type=rare"):
        part = [item for item in items if not subset or subset in item.subsets]
        found = figure([item for item in part if not item.error], "sum", 1)
        assert found is not None
        own.append(replace(blank, subset=subset, value=found.value, ci95=found.ci95, n=found.n))
    write_results(folder, [*own, *(replace(row, subject=subject) for row in rows)])
    return folder


def answers(right: str) -> list[Item]:
    """An item a letter, right where it is ``x``; every other one is of a rare word."""
    return [
        Item(
            id=f"word{index}",
            figures={"sum": RIGHT if letter == "x" else WRONG},
            subsets=("type=rare",) if index % 2 else (),
            note={"heard": f"<{letter}{index}>"},
        )
        for index, letter in enumerate(right)
    ]


class Reader(HTMLParser):
    """The text of a page, its figures' names, and whatever it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.labels: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "data-name":
                self.names.append(value or "")
            if name == "aria-label":
                self.labels.append(value or "")
            if name in ("src", "href"):
                self.loads.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    subject = Subject(model="")
    abx = Result(
        metric="abx", variant="within", value=12.0, ci95=(11, 13), n=9, data_sha256=SHA,
        subject=subject,
    )  # fmt: skip
    other = replace(abx, metric="sblimp", data_sha256="f" * 64)
    failed = Result(metric="swuggy", variant="", error="no <data> there", subject=subject)
    missing = Item(id="word8", error="silent")
    first = [*answers("xxoooooo"), missing]
    return [
        write_evaluation(tmp_path / "one", first, [abx, other]),
        write_evaluation(
            tmp_path / "two",
            answers("oxxxxxxxx"),
            [
                replace(abx, value=10.5, ci95=(9.5, 11.5)),
                replace(other, data_sha256="e" * 64),
                failed,
            ],
            torch="2.10.0",
        ),
    ]


def test_the_page_shows_figures_differences_and_what_is_not_alike(
    folders: list[Path], tmp_path: Path
) -> None:
    path = write_comparison(folders, tmp_path / "out" / "page.html", 1)
    page = Reader(path.read_text(encoding="utf-8"))
    assert page.loads == []
    assert page.open == []
    assert page.names == ["abx/within", "sblimp/within", "words/sum", "words/type=rare/sum"]
    assert "abx/within, B - A: -1.50, no scores of single items" in page.labels
    (shown,) = (label for label in page.labels if label.startswith("words/sum, B - A"))
    expected = {one.name: one for one in compare(folders)}["words/sum"]
    assert expected.value == pytest.approx(100 * 5 / 8)
    assert expected.p == pytest.approx(9 / 64, abs=0.02)  # 7 items differ, 6 of them one way
    assert expected.p_holm is not None
    assert f"+62.50 ({expected.ci95[0]:+.2f}" in shown  # type: ignore[index]
    assert f"p {expected.p:.2f}, after Holm {expected.p_holm:.2f}" in shown
    assert "1 items left out that one alone has" in shown
    assert not any(label.startswith("sblimp/within, B - A") for label in page.labels)
    for said in (
        "sblimp: the data differs: A ffffffffffff, B eeeeeeeeeeee",
        "the version of torch differs: A 2.9.1, B 2.10.0",
        "no <data> there",
        "measured on different data",
        "higher in B than in A: 6 of 8 items",
        "lower in B than in A: 1 of 8 items",
        "heard: <o2> → <x2>",
    ):
        assert said in page.text


def test_items_that_changed_come_with_what_either_says(folders: list[Path]) -> None:
    found = changes(*(Evaluated(folder) for folder in folders), "words/sum")  # type: ignore[misc]
    assert [(one.id, one.first, one.other) for one in found[:2]] == [
        ("word0", 100, 0),
        ("word2", 0, 100),
    ]
    assert (found[0].first_note, found[0].other_note) == ({"heard": "<x0>"}, {"heard": "<o0>"})
    assert len(found) == 7


def test_scores_of_another_run_are_not_taken_for_those_of_a_row(folders: list[Path]) -> None:
    journal = folders[1] / SCORES_FOLDER / "words.jsonl"
    journal.write_text(journal.read_text().replace(SHA, "9" * 64))
    found = {one.name: one for one in compare(folders)}
    assert found["words/sum"].why == "no scores of single items"
    assert found["words/sum"].ci95 is None
    lines = comparison_table(list(found.values()))
    assert len({len(re.split(r"no scores|measured", line)[0]) for line in lines[1:]}) == 1


def test_nothing_in_common_is_refused(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    write_results(tmp_path / "none", [])
    with pytest.raises(InputError, match="no metric was measured on the same data"):
        write_comparison([folders[0], tmp_path / "none"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_interval_of_a_difference_holds_the_truth(tmp_path: Path) -> None:
    """In about 95 of 100 made worlds; few here, and so a wide margin."""
    draw = np.random.default_rng(0)
    held, worlds = 0, 60
    for world in range(worlds):
        hard = draw.normal(size=60)
        folders = [
            write_evaluation(
                tmp_path / f"{world}{name}",
                answers("".join("ox"[int(value > 0)] for value in hard + draw.normal(size=60))),
            )
            for name in "ab"
        ]
        (found,) = (one for one in compare(folders, seed=world) if one.name == "words/sum")
        assert found.ci95 is not None
        held += found.ci95[0] <= 0 <= found.ci95[1]
    assert held >= 52
