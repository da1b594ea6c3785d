import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm.config import RunConfig, load_config
from speechlm.data import making
from speechlm.data.corpus import open_corpus
from speechlm.data.making import make_corpus, split_voices
from speechlm.data.questions import questions
from speechlm.errors import CorpusError, PartialFailure

pytest.importorskip("espeakng_loader")

SMALL = (
    "corpus.num_train_voices=2",
    "corpus.num_valid_voices=1",
    "corpus.num_test_voices=1",
    "corpus.renditions=1",
    "corpus.num_workers=1",
)


def small(output: Path, *overrides: str) -> RunConfig:
    return load_config(None, [f"output={output}", *SMALL, *overrides])


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def few_questions():
    """Twelve questions are enough, but for the tests in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "questions", lambda: questions()[::9])
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> RunConfig:
    config = small(tmp_path_factory.mktemp("made"))
    make_corpus(config)
    return config


def test_every_voice_asks_every_question_and_each_reply_is_there(made) -> None:
    corpus = open_corpus(made.corpus_path)
    asked = defaultdict(list)
    for recording in corpus:
        if recording.split is not None:
            asked[recording.split, recording.speaker].append(recording)
    assert sorted(split for split, _ in asked) == ["test", "train", "train", "valid"]
    world = {question.name: question for question in questions()[::9]}
    for recordings in asked.values():
        assert [r.id.split(".")[1] for r in recordings] == list(world)
        for recording in recordings:
            question = world[recording.id.split(".")[1]]
            assert recording.text in question.wordings
            assert recording.reply == f"answer.{question.answer}"
            assert corpus[recording.reply].split is None
            assert re.sub(r"\W", "", corpus[recording.reply].text) == question.answer


def test_everything_loads_and_silence_at_the_ends_is_short(made) -> None:
    for recording in open_corpus(made.corpus_path):
        samples, rate = soundfile.read(recording.audio)
        assert rate == 16_000
        assert samples.ndim == 1
        if recording.split in ("valid", "test"):
            loud = np.flatnonzero(np.abs(samples) > 0.01)
            assert max(loud[0], len(samples) - loud[-1]) <= 0.1 * rate


def test_word_times_lie_within_the_recording(made) -> None:
    for recording in open_corpus(made.corpus_path):
        if recording.words is not None:
            duration_s = soundfile.info(recording.audio).duration
            times = [t for word in recording.words for t in (word.start_s, word.end_s)]
            assert times == sorted(times)
            assert 0 <= times[0] < times[-1] <= duration_s + 0.001


def test_training_hears_other_pitches_speeds_and_wordings(tmp_path) -> None:
    config = small(tmp_path, "corpus.renditions=3")
    by_question = defaultdict(list)
    for batch in making._plan(config):
        for utterance in batch.utterances:
            if utterance.split == "train":
                by_question[utterance.id.rpartition(".")[0]].append(utterance)
    assert by_question
    for renditions in by_question.values():
        assert len({u.text for u in renditions}) == len(renditions) == 3
        assert len({u.voice for u in renditions}) == 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_variant_is_heard_in_two_splits(seed: int) -> None:
    config = replace(RunConfig().corpus, num_train_voices=200)
    by_split = split_voices(config, seed)
    speakers = [voice.speaker for voices in by_split.values() for voice in voices]
    assert len(set(speakers)) == len(speakers) == 218
    variants = {split: {v.variant for v in voices} for split, voices in by_split.items()}
    assert not variants["train"] & variants["valid"]
    assert not variants["train"] & variants["test"]
    assert not variants["valid"] & variants["test"]


def test_more_voices_than_there_are_is_refused(tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"at most \d+ voices .* lower corpus.num_train_voices"):
        make_corpus(small(tmp_path, "corpus.num_train_voices=5000"))


def test_a_rerun_makes_only_what_is_missing(made, tmp_path, monkeypatch) -> None:
    config = small(tmp_path)
    make_corpus(config)
    assert contents(config.corpus_path) == contents(made.corpus_path)

    audio = config.corpus_path / "audio"
    gone = sorted(path for path in audio.iterdir() if path.name != "answers")[1]
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    (audio / ".aside-123-left").mkdir()  # what a killed run leaves
    (audio / ".aside-123-left" / "half.flac").write_bytes(b"half")
    (config.corpus_path / ".aside-123-456.jsonl").write_bytes(b"half")
    make_batch, batches = making._make_batch, []

    def counted(folder, batch):
        batches.append(batch.name)
        return make_batch(folder, batch)

    monkeypatch.setattr(making, "_make_batch", counted)
    make_corpus(config)
    assert batches == [gone.name]
    assert contents(config.corpus_path) == contents(made.corpus_path)

    make_corpus(config)
    assert batches == [gone.name]


@pytest.mark.parametrize(
    ("override", "key"),
    [("seed=2", "seed"), ("corpus.num_test_voices=2", "num_test_voices")],
)
def test_another_configuration_is_never_mixed_in(made, override: str, key: str) -> None:
    before = contents(made.corpus_path)
    with pytest.raises(CorpusError, match=rf"made with {key} 1, now it is 2; delete"):
        make_corpus(small(made.output, override))
    assert contents(made.corpus_path) == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path) -> None:
    config = small(tmp_path)
    config.corpus_path.mkdir()
    (config.corpus_path / "thesis.wav").write_bytes(b"precious")
    with pytest.raises(CorpusError, match="was not made by 'speechlm corpus'"):
        make_corpus(config)
    assert contents(config.corpus_path).keys() == {"thesis.wav"}


def test_a_full_disk_ends_in_one_line_and_a_rerun_goes_on(made, tmp_path, monkeypatch) -> None:
    config = small(tmp_path)
    with monkeypatch.context() as patch:
        write = Path.write_bytes
        written = 0

        def write_bytes(self, data):
            nonlocal written
            written += 1
            if written > 15:
                raise OSError(28, "No space left on device", str(self))
            return write(self, data)

        patch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(PartialFailure, match=r"No space left on device; what is whole is kept"):
            make_corpus(config)
    assert not (config.corpus_path / "corpus.jsonl").exists()
    make_corpus(config)
    assert contents(config.corpus_path) == contents(made.corpus_path)


PROGRAM = """
import sys
from speechlm.config import load_config
from speechlm.data.making import make_corpus
if __name__ == "__main__":
    make_corpus(load_config(None, sys.argv[1:]))
"""


def test_killed_and_rerun_the_corpus_is_the_same_byte_for_byte(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"This is sentence number {i}.\n" for i in range(200)))

    def options(name: str) -> list[str]:
        chosen = (f"output={tmp_path / name}", "corpus.kind=text", f"corpus.text={text}")
        return [*SMALL, *chosen]

    make_corpus(load_config(None, options("whole")))

    audio = tmp_path / "killed" / "corpus" / "audio"
    process = subprocess.Popen(
        [sys.executable, str(program), *options("killed"), "corpus.num_workers=2"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    # A batch is being filled: its folder is still aside.
    while not list(audio.glob(".aside-*/*.flac")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (audio.parent / "corpus.jsonl").exists()
    while _alive(process.pid):  # its workers follow it
        assert time.monotonic() < deadline
        time.sleep(0.05)

    make_corpus(load_config(None, options("killed")))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(open_corpus(audio.parent)) == 200


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_text_is_read_aloud_line_by_line(tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\ufeffGood morning, Zoë.\n\n  A   second\tline  \n", encoding="utf-8")
    config = small(tmp_path, "corpus.kind=text", f"corpus.text={text}")
    make_corpus(config)
    corpus = open_corpus(config.corpus_path)
    assert {r.id: r.text for r in corpus} == {
        "line-1": "Good morning, Zoë.",
        "line-3": "A second line",
    }
    words = [word for word, _, _ in corpus["line-3"].words]
    assert words == ["A", "second", "line"]
    assert all(r.split in ("train", "valid", "test") for r in corpus)


def test_lines_are_spread_over_the_voices_and_splits_differ_by_voice(tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Sentence {i}.\n" for i in range(300)))
    config = small(tmp_path, "corpus.kind=text", f"corpus.text={text}")
    splits = defaultdict(set)
    for batch in making._plan(config):
        for utterance in batch.utterances:
            splits[utterance.voice.speaker].add(utterance.split)
    assert sorted(split for (split,) in splits.values()) == ["test", "train", "train", "valid"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text at all"),
        (b"\n \n", "no text at all"),
        (b"fine\n" + b"word " * 300, r"text.txt:2: 1499 characters long, expected at most 1000"),
        (b"fine\ncaf\xe9\n", "expected UTF-8 text, got byte 0xe9"),
        (b"fine\n...\n", r"text.txt:2: expected words to speak, got '...'"),
        (b"a\0b\n", r"text.txt:1: expected words to speak"),
    ],
    ids=["empty", "blank", "too-long", "latin-1", "no-words", "nul"],
)
def test_a_text_that_cannot_be_read_aloud_is_refused(tmp_path, content, message) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        make_corpus(small(tmp_path, "corpus.kind=text", f"corpus.text={text}"))
    assert not (tmp_path / "corpus").exists()


def test_a_missing_text_is_refused(tmp_path) -> None:
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        make_corpus(small(tmp_path, "corpus.kind=text", f"corpus.text={tmp_path / 'none.txt'}"))


def test_the_manifest_is_json_lines_with_paths_relative_to_it(made) -> None:
    for line in (made.corpus_path / "corpus.jsonl").read_text(encoding="utf-8").splitlines():
        assert (made.corpus_path / json.loads(line)["audio"]).is_file()


def test_a_process_that_dies_ends_in_one_line(tmp_path, monkeypatch) -> None:
    def die(*_args):
        raise BrokenProcessPool

    monkeypatch.setattr(making, "_make", die)
    with pytest.raises(PartialFailure, match=r"died \(out of memory\?\); what is whole is kept"):
        make_corpus(small(tmp_path))
