"""Models are compared item by item."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechlm.cli.main import main
from speechlm.errors import InputError
from speechlm.evaluation.tasks.compare import compare
from speechlm.evaluation.tasks.pairs import Pair
from speechlm.evaluation.tasks.results import read_results


def run(bundle: Path, folder: Path, output: Path, *more: str) -> int:
    return main(["evaluate", str(bundle), "--suite", f"pairs={folder}", "-o", str(output), *more])


def test_models_are_compared_item_by_item(
    bundle_folder: Path, clips: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = clips[0].positive.parent
    for name in "ab":
        assert run(bundle_folder, folder, tmp_path / name) == 0
    journal = tmp_path / "b" / "scores" / "pairs.jsonl"
    head, *lines = journal.read_text().splitlines()
    better = []
    for line in lines:
        item = json.loads(line)
        item["figures"]["sum"] = [100.0, 1.0]
        better.append(json.dumps(item))
    journal.write_text("\n".join([head, *better]) + "\n")
    found = {one.name: one for one in compare([tmp_path / "a", tmp_path / "b"])}
    mine = next(row for row in read_results(tmp_path / "a") if row.name == "pairs/sum")
    assert mine.value is not None
    assert found["pairs/sum"].value == pytest.approx(100 - mine.value)
    wrong = round(len(clips) * (1 - mine.value / 100))
    assert found["pairs/sum"].p == pytest.approx(2 * 0.5**wrong, abs=0.02)
    assert found["pairs/per_unit"].value == 0
    assert found["pairs/per_unit"].p == 1
    words = ["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main([*words, "-o", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "compare.html").is_file()
    assert "pairs/sum" in capsys.readouterr().out
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "results.jsonl").write_text("")
    with pytest.raises(InputError, match="no metric"):
        compare([tmp_path / "a", tmp_path / "c"])
