import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechlm.data import tokenize
from speechlm.data.store import UnitStore
from speechlm.data.tokenize import TokenizeSummary, tokenize_corpus
from speechlm.errors import ConfigError, CorpusError, FingerprintError, PartialFailure
from speechlm.plugins import load_tokenizer
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans

RATE = 16_000


def write_noise(path: Path, seed: int, seconds: float | None = None) -> None:
    random = np.random.default_rng(seed)
    seconds = random.uniform(0.05, 1.5) if seconds is None else seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = random.normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    soundfile.write(os.fsencode(path), samples, RATE)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A dozen recordings of noise and their JSON lines."""
    lines = []
    for number in range(12):
        write_noise(tmp_path / "corpus" / f"{number:02}.wav", number)
        words = [["a", 0.0, 0.02]] if number % 2 else None
        lines.append(
            {
                "audio": f"{number:02}.wav",
                "id": f"r{number:02}",
                "text": f"té {number}",
                "speaker": "s",
                "split": "train" if number % 3 else "test",
                "reply": f"r{number - 1:02}" if number else None,
                "words": words,
            }
        )
    write_lines(tmp_path / "corpus", lines)
    return tmp_path / "corpus"


def write_lines(corpus: Path, lines: list[dict[str, Any]]) -> None:
    rows = [{key: value for key, value in line.items() if value is not None} for line in lines]
    (corpus / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def read_lines(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "corpus.jsonl").read_text().splitlines()]


class Runner:
    """Tokenizes the corpus into a store, in this process unless told otherwise."""

    def __init__(self, corpus: Path, tokenizer: Path) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.store = corpus.parent / "store"

    def __call__(self, **settings: Any) -> TokenizeSummary:
        return tokenize_corpus(
            **{
                "corpus_path": self.corpus,
                "tokenizer_path": self.tokenizer,
                "store_path": self.store,
                "num_workers": 1,
                "shard_size": 5,
                **settings,
            }
        )

    def files(self, store: Path | None = None) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (store or self.store).iterdir()}


@pytest.fixture
def run(corpus: Path, tokenizer_folder: Path) -> Runner:
    return Runner(corpus, tokenizer_folder)


def test_the_store_holds_what_the_tokenizer_says_of_each_recording_alone(run: Runner) -> None:
    summary = run()
    assert (summary.done, summary.reused, summary.skipped) == (12, 0, {})
    store = UnitStore.open(run.store)
    tokenizer = load_tokenizer(run.tokenizer)
    assert store.fingerprint == tokenizer.fingerprint
    assert [each.id for each in store] == [f"r{number:02}" for number in range(12)]
    assert summary.audio_seconds == pytest.approx(sum(each.duration_s for each in store))
    for each, line in zip(store, read_lines(run.corpus), strict=True):
        samples, _ = soundfile.read(run.corpus / line["audio"], dtype="float32")
        [alone] = tokenizer.encode(torch.from_numpy(samples)[None])
        assert torch.equal(each.units.codes, alone.codes)
        assert each.duration_s == len(samples) / RATE
        assert (each.text, each.speaker, each.split) == (line["text"], "s", line["split"])
        assert each.reply == line.get("reply")
        assert [list(w) for w in each.words or ()] == line.get("words", [])


def test_a_rerun_makes_nothing_anew(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    files = run.files()
    times = {file: file.stat().st_mtime_ns for file in run.store.glob("*.parquet")}
    summary = run()
    assert (summary.done, summary.reused) == (0, 12)
    assert run.files() == files
    assert times == {file: file.stat().st_mtime_ns for file in run.store.glob("*.parquet")}
    assert "tokenized 0 recordings" in capsys.readouterr().err


def test_many_processes_and_any_order_give_the_same_store(run: Runner) -> None:
    run()
    run(num_workers=2, store_path=run.store.with_name("other"))
    assert run.files() == run.files(run.store.with_name("other"))


def test_a_missing_file_alone_is_made_again(run: Runner) -> None:
    run()
    files = run.files()
    next(run.store.glob("units-00001-*")).unlink()
    with pytest.raises(CorpusError, match=r"incomplete: 1 of 3 shards are missing \(1\)"):
        UnitStore.open(run.store)
    summary = run()
    assert (summary.done, summary.reused) == (5, 7)
    assert run.files() == files


def test_machines_that_share_the_work_make_the_same_store(run: Runner) -> None:
    run()
    shared = run.store.with_name("shared")
    for index in (3, 1):
        run(store_path=shared, shard=(index, 3))
        with pytest.raises(CorpusError, match=r"is incomplete: . of 3 shards are missing"):
            UnitStore.open(shared)
    summary = run(store_path=shared, shard=(2, 3))
    assert summary.done == 5
    assert run.files() == run.files(shared)


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0)])
def test_a_share_that_is_none_is_refused(run: Runner, shard: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"expected a share from 1/.*, got {shard[0]}/{shard[1]}"):
        run(shard=shard)


def test_skipped_recordings_are_listed_counted_and_tried_again(
    run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (run.corpus / "03.wav").read_bytes()
    (run.corpus / "03.wav").write_bytes(b"")
    (run.corpus / "11.wav").write_bytes(good[:500])
    with pytest.raises(PartialFailure) as caught:
        run()
    assert str(caught.value) == (
        f"2 of 12 recordings were skipped, {run.store / '_manifest.json'} says why; "
        "mend or remove them and run this again, or go on without them: --keep-going"
    )
    err = capsys.readouterr().err
    assert f"skipped r03: {run.corpus / '03.wav'}: the file is empty (0 bytes)\n" in err
    assert f"skipped r11: {run.corpus / '11.wav'}: truncated (its header promises" in err
    skipped = json.loads((run.store / "_manifest.json").read_text())["skipped"]
    assert list(skipped) == ["r03", "r11"]
    store = UnitStore.open(run.store)
    assert (len(store), dict(store.skipped)) == (10, skipped)
    with pytest.raises(KeyError, match=r"'r03'; it was skipped: .* is empty"):
        store["r03"]

    summary = run(keep_going=True)
    assert (summary.done, summary.reused, list(summary.skipped)) == (0, 10, ["r03", "r11"])

    (run.corpus / "03.wav").write_bytes(good)
    with pytest.raises(PartialFailure, match="1 of 12 recordings were skipped"):
        run()
    assert len(UnitStore.open(run.store)) == 11
    write_noise(run.corpus / "11.wav", 11)
    run()
    run(store_path=run.store.with_name("unbroken"))
    assert run.files() == run.files(run.store.with_name("unbroken"))


def test_a_corpus_of_bad_recordings_alone_is_refused(run: Runner) -> None:
    for file in run.corpus.glob("*.wav"):
        file.write_bytes(b"no audio")
    with pytest.raises(CorpusError) as caught:
        run(keep_going=True)
    assert str(caught.value).startswith("none of the 12 recordings can be used; the first: ")
    with pytest.raises(CorpusError, match="holds no recording: all 12 of the corpus were skipped"):
        UnitStore.open(run.store)


def test_an_empty_corpus_is_refused(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no audio in it"):
        run(corpus_path=tmp_path / "empty")
    assert not run.store.exists()


def test_units_of_another_tokenizer_are_never_added(run: Runner, tmp_path: Path) -> None:
    run()
    files = run.files()
    random = torch.Generator().manual_seed(5)
    waves = [0.1 * torch.randn(RATE, generator=random) for _ in range(3)]
    LogMelKMeans.fit(waves, {"num_units": 20}, seed=2).save(tmp_path / "refitted")
    old = load_tokenizer(run.tokenizer).fingerprint
    new = load_tokenizer(tmp_path / "refitted").fingerprint
    with pytest.raises(FingerprintError) as caught:
        run(tokenizer_path=tmp_path / "refitted")
    assert str(caught.value) == (
        f"unit store {run.store} was made for {old!r}, but {new!r} was given; "
        "tokenize into another folder, or delete this one"
    )
    assert run.files() == files


@pytest.mark.parametrize("change", ["add", "remove", "replace", "text", "move", "shard size"])
def test_a_changed_corpus_costs_only_what_changed(run: Runner, change: str) -> None:
    run()
    lines = read_lines(run.corpus)
    settings = {}
    made = 0
    if change == "add":
        write_noise(run.corpus / "new.wav", 99)
        lines.insert(2, {"audio": "new.wav", "id": "new"})
        made = 1
    elif change == "remove":
        del lines[2]
    elif change == "replace":
        write_noise(run.corpus / "02.wav", 99, seconds=2.0)
        made = 1
    elif change == "text":
        lines[2]["text"] = "mended"
    elif change == "move":
        run.corpus = run.corpus.rename(run.corpus.with_name("moved"))
    else:
        settings = {"shard_size": 3}
    write_lines(run.corpus, lines)
    summary = run(**settings)
    assert (summary.done, summary.reused) == (made, len(lines) - made)
    run(store_path=run.store.with_name("fresh"), **settings)
    assert run.files() == run.files(run.store.with_name("fresh"))


def test_another_corpus_never_replaces_the_first(run: Runner, tmp_path: Path) -> None:
    run()
    write_noise(tmp_path / "second" / "b.wav", 1)
    with pytest.raises(CorpusError) as caught:
        run(corpus_path=tmp_path / "second")
    assert str(caught.value) == (
        f"{run.store} holds the units of another corpus (12 recordings, 'r00' first) and none of "
        f"{tmp_path / 'second'} (1, 'b.wav' first); give another store folder, or delete it"
    )
    assert len(UnitStore.open(run.store)) == 12


def test_a_folder_of_something_else_is_not_written_into(run: Runner) -> None:
    run.store.mkdir()
    (run.store / "thesis.tex").touch()
    with pytest.raises(CorpusError, match=r"is not a unit store but holds 'thesis.tex'; give a ne"):
        run()
    assert os.listdir(run.store) == ["thesis.tex"]


def test_long_recordings_by_blocks_equal_the_whole(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr("speechlm.data.encoding.LONG_S", 0.3)
    monkeypatch.setattr("speechlm.data.encoding.BLOCK_S", 0.11)
    run(store_path=run.store.with_name("blocks"))
    assert run.files() == run.files(run.store.with_name("blocks"))


def test_small_batches_equal_large_ones(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr("speechlm.data.encoding.BATCH_S", 0.7)
    monkeypatch.setattr(tokenize, "CHUNK", 3)
    run(store_path=run.store.with_name("small"))
    assert run.files() == run.files(run.store.with_name("small"))


def test_names_of_any_letters_and_bytes_come_through(run: Runner, tmp_path: Path) -> None:
    names = ["漢字 é.wav", os.fsdecode(b"caf\xe9.wav"), "n" * 251 + ".wav"]
    for number, name in enumerate(names):
        write_noise(tmp_path / "names" / name, number)
    (tmp_path / "names" / os.fsdecode(b"bad\xe9.wav")).touch()
    with pytest.raises(PartialFailure, match="1 of 4 recordings were skipped"):
        run(corpus_path=tmp_path / "names")
    store = UnitStore.open(run.store)
    assert {each.id for each in store} == {"漢字 é.wav", r"caf\xe9.wav", "n" * 251 + ".wav"}
    assert run(corpus_path=tmp_path / "names", keep_going=True).reused == 3


@pytest.mark.slow
def test_three_hours_are_tokenized_in_bounded_memory(run: Runner, tmp_path: Path) -> None:
    minute = np.random.default_rng(0).normal(0, 3000, 60 * RATE).astype(np.int16)
    (tmp_path / "long").mkdir()
    with soundfile.SoundFile(tmp_path / "long" / "a.flac", "w", RATE, 1) as file:
        for _ in range(180):
            file.write(minute)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run(corpus_path=tmp_path / "long").audio_seconds == 3 * 3600
    used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert used < 2 * 4 * 3 * 3600 * RATE  # the waveform in float32, and as much again
    [stored] = UnitStore.open(run.store)
    assert stored.units.num_frames == 3 * 3600 * stored.units.frame_rate
