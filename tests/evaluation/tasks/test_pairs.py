"""Readers of published layouts of pairs make manifests, or refuse them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm.errors import CorpusError
from speechlm.evaluation.tasks.pairs import READERS, Pair, data_sha256, read_pairs, write_pairs


def tone(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    soundfile.write(path, draw.normal(0, 0.1, 1600 + 160 * seed), 16_000)
    return path


def gold(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    (folder / "gold.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, row in enumerate(rows):
        tone(folder / f"{row['filename']}.wav", number)
    return folder


def lexical(folder: Path) -> Path:
    rows: list[dict[str, object]] = []
    for word in range(3):
        for voice in ("A", "B"):
            for correct in (1, 0):
                name = f"{word}{voice}{correct}"
                rows.append({"filename": name, "id": word, "voice": voice, "correct": correct})
                rows[-1]["frequency"] = ("oov", 3, 500)[word]
    random.Random(1).shuffle(rows)
    return gold(folder, rows)


def stories(folder: Path) -> Path:
    for number in range(4):
        for kind in ("correct", "incorrect"):
            tone(folder / f"{number}_{kind}.wav", number + (kind == "correct"))
    return folder


def salmon(folder: Path) -> Path:
    for part in ("gender", "speaker"):
        for number in range(3):
            for kind in ("0", "1"):
                tone(folder / part / f"sample_{number}_{kind}.wav", number)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "swuggy": lexical,
    "tsc": stories,
    "ssc": stories,
    "salmon": salmon,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_become_manifests(name: str, tmp_path: Path) -> None:
    pairs = READERS[name](LAYOUTS[name](tmp_path / "data"))
    assert len(pairs) == {"swuggy": 6, "tsc": 4, "ssc": 4, "salmon": 6}[name]
    assert all("1" in pair.positive.stem or name != "swuggy" for pair in pairs)
    if name in ("tsc", "ssc"):
        assert all(pair.positive.stem.endswith("_correct") for pair in pairs)
    if name == "salmon":
        assert all(pair.positive.stem.endswith("_0") for pair in pairs)
        assert {pair.type for pair in pairs} == {"gender", "speaker"}
    write_pairs(tmp_path / "data", pairs)
    assert read_pairs(tmp_path / "data") == pairs


def test_the_other_gold_files(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"filename": f"{kind}{item}{ok}", "id": item, "type": kind, "subtype": "s", "voice": "A"}
        | {"correct": ok}
        for kind in ("agreement", "island")
        for item in range(2)
        for ok in (1, 0)
    ]
    pairs = READERS["sblimp"](gold(tmp_path / "a", rows))
    assert [(pair.type, pair.id) for pair in pairs] == [
        *(("agreement", "0"), ("agreement", "1"), ("island", "0"), ("island", "1"))
    ]
    for row in rows:
        del row["voice"], row["subtype"]
    assert len(READERS["prosaudit"](gold(tmp_path / "b", rows))) == 4


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_member_is_told(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path)
    sorted(folder.rglob("*.wav"))[0].unlink()
    with pytest.raises(CorpusError, match=r"missing|expected two recordings"):
        READERS[name](folder)


def test_members_that_do_not_pair_are_told(tmp_path: Path) -> None:
    folder = lexical(tmp_path)
    lines = (folder / "gold.csv").read_text().splitlines()
    (folder / "gold.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(CorpusError, match="expected one correct"):
        READERS["swuggy"](folder)
    (folder / "gold.csv").write_text("\n".join([lines[0].replace("voice", "who"), *lines[1:]]))
    with pytest.raises(CorpusError, match="expected columns"):
        READERS["swuggy"](folder)
    (folder / "gold.csv").write_bytes("id,mot\n1,été\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="UTF-8"):
        READERS["swuggy"](folder)
    with pytest.raises(CorpusError, match="got none"):
        READERS["tsc"](tmp_path / "nothing")


def test_a_manifest_with_a_pair_told_twice_is_refused(tmp_path: Path) -> None:
    pair = Pair(id="a", positive=tone(tmp_path / "p.wav", 1), negative=tone(tmp_path / "n.wav", 2))
    write_pairs(tmp_path, [pair, pair])
    with pytest.raises(CorpusError, match="twice"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(CorpusError, match=r"pairs.jsonl:1: expected a JSON object"):
        read_pairs(tmp_path)


def test_the_hash_is_of_names_and_sound(tmp_path: Path) -> None:
    pairs = READERS["tsc"](stories(tmp_path))
    before = data_sha256(pairs)
    assert data_sha256(pairs) == before
    tone(pairs[0].negative, 9)
    assert data_sha256(pairs) != before
