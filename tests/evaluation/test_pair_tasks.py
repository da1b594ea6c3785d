"""Benchmarks of pairs: readers of published layouts, scores, figures, resumption, refusals."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.cli.main import main
from speechlm.data.human import human_clips
from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.tasks import mini, pair_accuracy, suite
from speechlm.evaluation.tasks.compare import compare
from speechlm.evaluation.tasks.pair_accuracy import VARIANTS, Scored, differing, figure, score_pairs
from speechlm.evaluation.tasks.pairs import (
    READERS,
    Pair,
    data_sha256,
    read_pairs,
    write_pairs,
)
from speechlm.evaluation.tasks.results import read_results
from speechlm.model.likelihood import score_recordings


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


def drop(folder: Path, pattern: str) -> None:
    next(iter(sorted(folder.rglob(pattern)))).unlink()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_member_is_told(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path)
    drop(folder, "*.wav")
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


UNITS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(UNITS, UNITS)
def test_what_differs_lies_between_what_is_shared(first: list[int], second: list[int]) -> None:
    spans = differing(torch.tensor([first]), torch.tensor([second]))
    if first == second:
        assert spans is None
        return
    assert spans is not None
    (begin, end), (other_begin, other_end) = spans
    assert begin == other_begin
    assert first[:begin] == second[:begin]
    assert len(first) - end == len(second) - other_end
    assert first[end:] == second[other_end:]
    assert begin < end
    assert other_begin < other_end


@pytest.fixture(scope="module")
def model(bundle_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(bundle_folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Pairs of recorded words."""
    folder = tmp_path_factory.mktemp("pairs")
    paths = [clip.path for clip in list(human_clips("answers").values())[:24]]
    pairs = [
        Pair(id=str(index), positive=right, negative=wrong, type="ab"[index % 2])
        for index, (right, wrong) in enumerate(zip(paths[::2], paths[1::2], strict=True))
    ]
    for pair in pairs:
        for path in (pair.positive, pair.negative):
            (folder / path.name).write_bytes(path.read_bytes())
    moved = [
        Pair(
            id=pair.id,
            type=pair.type,
            positive=folder / pair.positive.name,
            negative=folder / pair.negative.name,
        )
        for pair in pairs
    ]
    write_pairs(folder, moved)
    return moved


def test_scores_are_the_likelihoods_of_the_model(model: SpeechLM, clips: list[Pair]) -> None:
    scored = list(score_pairs(model, clips))
    assert [one.pair for one in scored] == clips
    rate = model.tokenizer.sample_rate
    for one in scored[:3]:
        units = [
            model.encode(load_audio(path, rate), rate)
            for path in (one.pair.positive, one.pair.negative)
        ]
        alone = [score_recordings(model.lm, [each])[0] for each in units]
        assert one.scores["sum"] == pytest.approx([each.total for each in alone])
        assert one.scores["per_unit"] == pytest.approx([each.per_unit for each in alone])
        assert one.scores["per_second"] == pytest.approx([each.per_second for each in alone])
        spans = differing(units[0].codes, units[1].codes)
        assert spans is not None
        local = [
            score_recordings(model.lm, [each], spans_s=[(start / 50, stop / 50)])[0].total
            for each, (start, stop) in zip(units, spans, strict=True)
        ]
        assert one.scores["localised"] == pytest.approx(local)


def test_a_pair_of_the_same_is_a_tie_and_gives_50(model: SpeechLM, clips: list[Pair]) -> None:
    same = [Pair(id=pair.id, positive=pair.positive, negative=pair.positive) for pair in clips]
    scored = list(score_pairs(model, same))
    for variant in VARIANTS:
        assert figure(scored, variant, seed=1).value == 50.0


def test_items_count_once_and_subsets_are_parts() -> None:
    def one(item: str, voice: str, right: bool, frequency: str) -> Scored:
        pair = Pair(
            id=item, voice=voice, positive=Path("p"), negative=Path("n"), frequency=frequency
        )
        return Scored(pair=pair, scores={"sum": (1.0, 0.0) if right else (0.0, 1.0)})

    scored = [
        *(one("a", voice, True, "oov") for voice in "ABC"),
        *(one("b", voice, voice == "A", "3") for voice in "AB"),
        one("c", "A", False, "200"),
    ]
    assert figure(scored, "sum", seed=1).value == pytest.approx(50.0)
    assert figure(scored, "sum", seed=1).n == 3
    parts = pair_accuracy.subsets(scored)
    assert {name: len(part) for name, part in parts.items()} == {
        "": 6,
        "frequency=oov": 3,
        "frequency=1-5": 2,
        "frequency=>100": 1,
        "in-vocabulary": 3,
    }


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 1000))
def test_intervals_hold_the_truth_19_times_in_20(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth, held, trials = 0.6, 0, 400
    for _ in range(trials):
        rights = draw.random((60, 1)) < truth
        scored = [
            Scored(
                pair=Pair(id=str(item), positive=Path("p"), negative=Path("n")),
                scores={"sum": (float(right), 1.0 - float(right))},
            )
            for item, (right,) in enumerate(rights)
        ]
        low, high = figure(scored, "sum", seed=1).ci95
        held += low <= 100 * truth <= high
    assert held / trials == pytest.approx(0.95, abs=0.04)


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

    def killed(model: SpeechLM, pairs: list[Pair]) -> object:
        asked.append(len(pairs))
        for index, one in enumerate(score_pairs(model, pairs)):
            if index == 5 and len(asked) == 1:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(suite, "score_pairs", killed)
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
    assert "1 of 3 pairs" in capsys.readouterr().out
    found = read_results(tmp_path / "out")
    assert [row.n for row in found if not row.error] == [2] * len(VARIANTS)
    drop(data, pairs[0].positive.name)
    assert run(bundle_folder, data, tmp_path / "out") == 1
    assert "missing" in read_results(tmp_path / "out")[0].error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "swugy=x"], "expected NAME=FOLDER with a name of pairs, swuggy"),
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
        item["scores"]["sum"] = [1.0, 0.0]
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
    assert main(["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "pairs/sum" in capsys.readouterr().out
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "results.jsonl").write_text("")
    with pytest.raises(InputError, match="no metric"):
        compare([tmp_path / "a", tmp_path / "c"])


def test_units_are_asked_for_phones(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for number, clip in enumerate(list(human_clips("answers").values())[:6]):
        soundfile.write(tmp_path / f"f{number}.wav", *soundfile.read(clip.path))
        for place in range(3):
            onset = 0.1 + 0.06 * place
            phone, speaker = "pq"[(number + place) % 2], f"s{number % 2}"
            lines.append(f"f{number} {onset:.2f} {onset + 0.06:.2f} {phone} a b {speaker}")
    (tmp_path / "some.item").write_text("\n".join(lines) + "\n")
    words = ["evaluate", str(bundle_folder), "--suite", f"abx={tmp_path}"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    found = {row.variant: row for row in read_results(tmp_path / "out")}
    assert set(found) == {
        f"{speakers}/{distance}"
        for speakers in ("within", "across")
        for distance in ("identical", "angular")
    }
    assert all(row.subset == "some" and 0 <= (row.value or 0) <= 100 for row in found.values())
    (tmp_path / "f3.wav").unlink()
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    assert "f3.wav or f3.flac is missing" in capsys.readouterr().out


def test_words_made_on_the_spot_differ_in_one_phone(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("pocketsphinx")
    monkeypatch.setattr(mini, "WORDS", ("kitchen", "monday", "river"))
    monkeypatch.setattr(mini, "NUM_VOICES", 2)
    words = ["evaluate", str(bundle_folder), "--suite", "mini-swuggy"]
    assert main([*words, "-o", str(tmp_path)]) == 0
    pairs = read_pairs(tmp_path / "data" / "mini-swuggy")
    assert len(pairs) == 6
    assert {pair.id for pair in pairs} == {"kitchen", "monday", "river"}
    whole = next(row for row in read_results(tmp_path) if row.name == "mini-swuggy/sum")
    assert whole.n == 3
    known = mini.known_words()
    for word in ("kitchen", "monday", "river"):
        phones = mini.spell(word, mini.Voice())
        assert mini.coarse(phones) in known
        for changed in mini.non_words(phones, known):
            assert mini.coarse(changed) not in known
            assert sum(a != b for a, b in zip(phones, changed, strict=True)) == 1
    before = data_sha256(pairs)
    mini.make_swuggy(tmp_path / "again", 1)
    assert data_sha256(read_pairs(tmp_path / "again")) == before
