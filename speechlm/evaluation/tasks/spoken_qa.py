"""How often the spoken answer to a spoken question is right.

As Llama-Questions, Web-Questions and TriviaQA are asked in speech: a folder has
``questions.jsonl``, a question a line, ``{"audio": …, "answers": [texts], "id": …}``. The reply is
rendered, a recognizer writes down what it hears, and that is compared with each answer after both
were made alike: small letters, no punctuation, no articles.

``exact-match``
    The reply is an answer and nothing else (SQuAD's and TriviaQA's rule).
``contained``
    An answer's words are in the reply, one after another.
``contained-substring``
    The same by letters, as much published code does it: "art" is in "heart" then.

A reply of nothing is wrong, and is counted beside.

Sources:
    Rajpurkar et al. 2016 (normalisation, exact match), arXiv:1606.05250; Nachmani et al. 2023
    (Spectron: Llama-Questions, an answer in the transcript), arXiv:2305.15255.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from speechlm.audio import load_audio
from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.data.jsonlines import read_rows
from speechlm.errors import CorpusError, SpeechLMError
from speechlm.evaluation.recognizer import SpeechRecognizer
from speechlm.evaluation.tasks.items import RIGHT, WRONG, Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.prompts import apart, portions, seed_of, transcribe
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of
from speechlm.units import Units

QUESTIONS_NAME = "questions.jsonl"
SAMPLING = SamplingConfig()
"""The most probable unit each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenQuestion:
    """A recorded question and what answers it."""

    id: str
    audio: Path
    answers: tuple[str, ...]


def run_spoken_qa(job: Job) -> Iterator[Result]:
    """Answers to spoken questions."""
    yield from spoken_qa_rows(job, job.recognizer())


def spoken_qa_rows(
    job: Job, recognizer: SpeechRecognizer, sampling: SamplingConfig = SAMPLING
) -> Iterator[Result]:
    """All figures, in percent.

    Raises:
        CorpusError: The questions cannot be read.
    """
    model = job.system.bundle
    questions = read_questions(job.given)
    sha256 = questions_sha256(questions)

    def score(left: Sequence[SpokenQuestion]) -> Iterator[Item]:
        return score_answers(model, left, recognizer, sampling, job.seed)

    about = {"asr": recognizer.name, "sampling": repr(sampling)}
    items = job.run_items(questions, score, sha256, "questions", **about)
    yield from job.rows(items, sha256, asr=recognizer.name)


def read_questions(folder: Path) -> list[SpokenQuestion]:
    """The questions of a folder's ``questions.jsonl``, or of such a file.

    Raises:
        CorpusError: There is none, it is not UTF-8, or a row lacks its recording or answers.
    """
    path = folder if folder.is_file() else folder / QUESTIONS_NAME
    if not path.is_file():
        raise CorpusError(
            f"{folder}: expected {QUESTIONS_NAME}, a question a line: "
            '{"audio": path, "answers": [texts]}'
        )
    found: dict[str, SpokenQuestion] = {}
    for number, row in read_rows(path):
        audio, answers = row.get("audio"), row.get("answers")
        if (
            not isinstance(audio, str)
            or not isinstance(answers, list)
            or not all(isinstance(one, str) and normalised(one) for one in answers)
            or not answers
        ):
            raise CorpusError(
                f'{path}:{number}: expected "audio", a path, and "answers", a list of one text or '
                f"more that have words, got {audio!r} and {answers!r}"
            )
        name = str(row.get("id", audio))
        if name in found:
            raise CorpusError(f"{path}:{number}: the question {name!r} is there twice")
        found[name] = SpokenQuestion(id=name, audio=path.parent / audio, answers=tuple(answers))
    if not found:
        raise CorpusError(f"{path}: holds no questions")
    return list(found.values())


def questions_sha256(questions: Sequence[SpokenQuestion]) -> str:
    """Of ids, answers and every byte of the sound."""
    digest = hashlib.sha256()
    for one in questions:
        digest.update(repr((one.id, one.answers)).encode())
        if one.audio.is_file():
            digest.update(sha256_of(one.audio).encode())
    return digest.hexdigest()


def score_answers(
    model: SpeechLM,
    questions: Sequence[SpokenQuestion],
    recognizer: SpeechRecognizer,
    sampling: SamplingConfig = SAMPLING,
    seed: int = 0,
) -> Iterator[Item]:
    """Ask questions in order; one that cannot be asked gives an item with an error."""

    def work(part: Sequence[tuple[SpokenQuestion, Units]]) -> list[Units]:
        seeds = [seed_of(seed, question.id) for question, _ in part]
        return model.reply_units([units for _, units in part], sampling=sampling, seeds=seeds)

    for portion in portions(questions):
        asked: list[tuple[SpokenQuestion, Units]] = []
        failed: dict[str, str] = {}
        for one in portion:
            try:
                rate = model.tokenizer.sample_rate
                asked.append((one, model.encode(load_audio(one.audio, rate), rate)))
            except (SpeechLMError, OSError) as error:
                failed[one.id] = str(error)
        replies: dict[str, Units] = {}
        for (one, _), reply in zip(asked, apart(work, asked), strict=True):
            if isinstance(reply, str):
                failed[one.id] = reply
            else:
                replies[one.id] = reply
        waves = [
            model.vocoder.decode([reply], speaker=model.reply_voice)[0]
            if reply.codes.shape[1]
            else torch.zeros(0)
            for reply in replies.values()
        ]
        for name, wave in zip(replies, waves, strict=True):
            if not bool(wave.isfinite().all()):
                failed[name] = "the vocoder gave sound that is no number"
        heard = transcribe(recognizer, [wave.nan_to_num() for wave in waves], model.sample_rate)
        texts = dict(zip(replies, heard, strict=True))
        for one in portion:
            if one.id in failed:
                yield Item(id=one.id, error=failed[one.id])
            else:
                item = _item(one, texts[one.id], bool(replies[one.id].codes.shape[1]))
                drawn = {"seed": seed_of(seed, one.id), "sampling": asdict(sampling)}
                yield replace(item, note={**item.note, **drawn})


def _item(question: SpokenQuestion, heard: str, said_something: bool) -> Item:
    right = judge_answer(heard, question.answers)
    figures = {name: RIGHT if it_is else WRONG for name, it_is in right.items()}
    figures["empty-output"] = WRONG if said_something else RIGHT
    figures["nothing-heard"] = WRONG if normalised(heard) else RIGHT
    note = {"heard": heard, "answers": list(question.answers)}
    return Item(id=question.id, figures=figures, note=note)


def judge_answer(heard: str, answers: Sequence[str]) -> dict[str, bool]:
    """Whether what was heard is right, by each of the rules.

    Args:
        heard: A transcript; of nothing, it is wrong by all of them.
        answers: Any of which is right.
    """
    reply = normalised(heard)
    right = [normalised(one) for one in answers]
    return {
        "exact-match": bool(reply) and reply in right,
        "contained": any(one and f" {one} " in f" {reply} " for one in right),
        "contained-substring": any(one and one in reply for one in right),
    }


def normalised(text: str) -> str:
    """Small letters, without punctuation, articles and more than one space."""
    words = re.sub(r"[^\w\s]|_", "", text.lower())
    return " ".join(word for word in words.split() if word not in ("a", "an", "the"))
