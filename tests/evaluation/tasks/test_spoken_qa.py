"""Spoken questions are asked, and the replies judged by rules that have names."""

from __future__ import annotations

import json
import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pocketsphinx")

from small_hub import write_whisper

from speechlm import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.data.human import human_clips
from speechlm.errors import CorpusError
from speechlm.evaluation.hub_models import WhisperRecognizer
from speechlm.evaluation.recognizer import Recognizer
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.tasks.spoken_qa import (
    judge_answer,
    normalised,
    read_questions,
    run_spoken_qa,
    score_answers,
    spoken_qa_rows,
)

BRIEF = SamplingConfig(max_units=20)
"""The bundle's untrained LM never ends by itself."""


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> WhisperRecognizer:
    """A random one, which writes letters."""
    folder = tmp_path_factory.mktemp("hub") / "whisper"
    write_whisper(folder)
    return WhisperRecognizer(folder)


def write_questions(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for name, clip in list(human_clips("answers").items())[:count]:
        (folder / clip.path.name).write_bytes(clip.path.read_bytes())
        rows.append({"id": name, "audio": clip.path.name, "answers": [clip.text, "something"]})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def job(bundle_folder: Path, tmp_path: Path) -> Job:
    return Job(
        name="spoken-qa",
        system=System(str(bundle_folder)),
        data=write_questions(tmp_path / "questions"),
        output=tmp_path / "out",
        seed=1,
    )


def squad_normalise(text: str) -> str:
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.text(alphabet="aAbnthe .,-'!_1", max_size=20))
def test_texts_are_made_alike_as_squad_does(text: str) -> None:
    assert normalised(text) == squad_normalise(text)


@pytest.mark.parametrize(
    ("heard", "exact", "contained", "substring"),
    [
        ("The Amazon!", True, True, True),
        ("it is the amazon river", False, True, True),
        ("amazons", False, False, True),
        ("the nile", False, False, False),
        ("", False, False, False),
    ],
)
def test_rules_judge_as_they_say(heard: str, exact: bool, contained: bool, substring: bool) -> None:
    found = judge_answer(heard, ["Amazon", "the Marañón"])
    assert found == {
        "exact-match": exact,
        "contained": contained,
        "contained-substring": substring,
    }


def test_questions_are_asked_and_a_killed_run_goes_on(
    job: Job, recognizer: WhisperRecognizer
) -> None:
    rows = list(spoken_qa_rows(job, recognizer, BRIEF))
    assert {row.variant: row.n for row in rows} == dict.fromkeys(
        ("exact-match", "contained", "contained-substring", "empty-output", "nothing-heard"), 3
    )
    assert all(row.asr == recognizer.name for row in rows)
    journal = job.output / "scores" / "spoken-qa.jsonl"
    kept = journal.read_bytes()
    journal.write_bytes(b"\n".join(kept.split(b"\n")[:2]) + b"\n")

    def told(rows: list[Result]) -> list[str]:
        return [row.to_json() for row in rows]

    assert told(list(spoken_qa_rows(job, recognizer, BRIEF))) == told(rows)
    assert journal.read_bytes() == kept


def test_what_is_heard_is_what_is_judged(
    model: SpeechLM, job: Job, recognizer: WhisperRecognizer
) -> None:
    (first, *_) = read_questions(job.given)
    (wrong,) = score_answers(model, [first], recognizer, BRIEF)
    assert wrong.figures["contained"] == (0.0, 1.0)
    answered = replace(first, answers=("no", wrong.note["heard"]))
    (right,) = score_answers(model, [answered], recognizer, BRIEF)
    assert right.figures["exact-match"] == right.figures["contained"] == (100.0, 1.0)


def test_pocketsphinx_hears_without_a_download(job: Job) -> None:
    assert job.data is not None
    row = json.loads((job.data / "questions.jsonl").read_text().splitlines()[0])
    (job.data / "questions.jsonl").write_text(json.dumps({**row, "audio": "gone.flac"}))
    (failed,) = run_spoken_qa(job)
    assert (failed.asr or "").startswith("pocketsphinx")
    assert "no such file" in failed.error


def test_a_reply_of_nothing_is_wrong_and_counted(bundle_folder: Path, job: Job) -> None:
    model = SpeechLM.from_pretrained(bundle_folder)
    decoder, end = model.lm.decoder, model.lm.vocabulary.end
    with torch.no_grad():  # the same state at each position, and the end follows it
        for weight in (*decoder.model.layers.parameters(), decoder.lm_head.weight):
            weight.zero_()
        decoder.model.embed_tokens.weight.fill_(1.0)
        decoder.lm_head.weight[end] = 1.0
    for item in score_answers(model, read_questions(job.given), Recognizer()):
        assert item.figures["empty-output"] == (100.0, 1.0)
        assert item.figures["contained"] == item.figures["exact-match"] == (0.0, 1.0)


def test_a_question_that_cannot_be_heard_is_counted(
    job: Job, recognizer: WhisperRecognizer
) -> None:
    paths = sorted(job.given.glob("*.flac"))
    paths[0].unlink()
    paths[1].write_bytes(b"")
    rows = list(spoken_qa_rows(job, recognizer, BRIEF))
    (failed,) = [row for row in rows if row.subset == "failed"]
    assert failed.n == 2
    assert failed.error.startswith("2 of 3, the first ")
    assert {row.n for row in rows if not row.subset} == {1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no questions"),
        ('{"audio": "a.wav", "answers": ["caf\u00e9"]}'.encode("latin-1"), "expected UTF-8 text"),
        (b'{"audio": "a.wav"}', "a list of one text or more"),
        (b'{"audio": "a.wav", "answers": ["the"]}', "that have words"),
        (b'{"audio": "a", "answers": ["b"]}\n{"audio": "a", "answers": ["b"]}', "there twice"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "questions.jsonl").write_bytes(content)
    with pytest.raises(CorpusError, match=said) as caught:
        read_questions(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError, match=r"expected questions\.jsonl"):
        read_questions(tmp_path / "elsewhere")
