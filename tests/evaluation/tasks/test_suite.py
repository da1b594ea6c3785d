"""Benchmarks by their names: rows, resumption, failures, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest

from speechlm import SpeechLM
from speechlm.cli.main import main
from speechlm.evaluation.tasks import pair_suites
from speechlm.evaluation.tasks.catalogue import BENCHMARKS, parse_suites
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.pair_accuracy import VARIANTS, score_pairs
from speechlm.evaluation.tasks.pairs import Pair, write_pairs
from speechlm.evaluation.tasks.results import read_results


def run(bundle: Path, folder: Path, output: Path, *more: str) -> int:
    return main(["evaluate", str(bundle), "--suite", f"pairs={folder}", "-o", str(output), *more])


def rows(output: Path) -> list[dict[str, object]]:
    lines = (output / "results.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "wall_s"} for line in lines]


def test_the_command_writes_rows_and_the_same_again(
    bundle_folder: Path, clips: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = clips[0].positive.parent
    assert run(bundle_folder, folder, tmp_path / "a") == 0
    shown = capsys.readouterr().out
    assert "pairs/type=a/per_unit" in shown
    assert run(bundle_folder, folder, tmp_path / "b") == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    found = read_results(tmp_path / "a")
    assert {row.variant for row in found} == set(VARIANTS)
    whole = next(row for row in found if row.variant == "sum" and not row.subset)
    assert whole.n == len(clips)
    assert whole.ci95 is not None
    assert whole.ci95[0] <= whole.value <= whole.ci95[1]
    assert whole.subject.rate_hz == 50
    assert whole.data_sha256


def test_a_killed_run_goes_on_where_it_was(
    bundle_folder: Path, clips: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clips[0].positive.parent
    assert run(bundle_folder, folder, tmp_path / "whole") == 0
    asked: list[int] = []

    def killed(model: SpeechLM, pairs: Sequence[Pair]) -> Iterator[Item]:
        asked.append(len(pairs))
        for index, one in enumerate(score_pairs(model, pairs)):
            if index == 5 and len(asked) == 1:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(pair_suites, "score_pairs", killed)
    output = tmp_path / "cut"
    assert run(bundle_folder, folder, output) not in (0, 2)
    journal = output / "scores" / "pairs.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])  # its last line was cut off too
    assert run(bundle_folder, folder, output) == 0
    assert asked == [12, 8]
    assert rows(output) == rows(tmp_path / "whole")


def test_what_cannot_be_scored_is_a_row(
    bundle_folder: Path, clips: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pairs = []
    for pair in clips[:3]:
        paths = [data / path.name for path in (pair.positive, pair.negative)]
        for path, source in zip(paths, (pair.positive, pair.negative), strict=True):
            path.write_bytes(source.read_bytes())
        pairs.append(Pair(id=pair.id, positive=paths[0], negative=paths[1]))
    pairs[1].negative.write_bytes(b"no sound")
    write_pairs(data, pairs)
    assert run(bundle_folder, data, tmp_path / "out") == 1
    assert "1 of 3, the first" in capsys.readouterr().out
    found = read_results(tmp_path / "out")
    assert [row.n for row in found if not row.error] == [2] * len(VARIANTS)
    pairs[0].positive.unlink()
    assert run(bundle_folder, data, tmp_path / "out") == 1
    assert "missing" in read_results(tmp_path / "out")[0].error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "swugy=x"], "expected NAME=FOLDER with a name of swuggy"),
        (["--suite", "swuggy"], "expected swuggy=FOLDER"),
        ([], "expected --suite NAME=FOLDER beside the model"),
        (["another", "--suite", "tsc=x"], "expected one model before --suite"),
    ],
)
def test_words_that_make_no_sense(
    words: list[str], message: str, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(bundle_folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_every_benchmark_has_a_runner_and_is_told_in_help_and_docs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for one in BENCHMARKS.values():
        module, function = one.address
        assert callable(getattr(import_module(module), function))
    assert main(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, one in BENCHMARKS.items():
        assert f"  {name} " in shown
        assert one.about in shown
        assert f"`{name}`" in page, name


def test_mini_is_all_that_begin_so() -> None:
    names = [suite.name for suite in parse_suites(["mini", "tsc=x", "mini-tsc"])]
    assert len(names) == len(set(names)) > 6
    assert set(names) == {name for name in BENCHMARKS if name.startswith("mini-")} | {"tsc"}
