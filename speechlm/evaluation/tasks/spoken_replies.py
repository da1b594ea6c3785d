"""What a system answers to spoken questions, as text: from a bundle, recordings, or rows.

Answers are slow to make and are graded in several ways, so they are items of a journal of their
own, ``NAME-replies``: another judge does not make the model speak again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from speechlm.audio import load_audio, prepare
from speechlm.errors import AudioError, CorpusError, InputError, SpeechLMError
from speechlm.evaluation.recognizer import Recognizer, SpeechRecognizer
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job
from speechlm.files import sha256_of
from speechlm.units import Units

QUESTIONS_AT_ONCE = 8
RECORDINGS_RATE = 16_000
"""At which recorded answers are read, Hz."""
SUFFIXES = (".wav", ".flac")
GIVEN = "as given"
"""Instead of a recognizer's name: the answers came as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """A recording: a file, or a cell of a parquet file."""

    path: Path
    row: int | None = None
    """Of a parquet file, whose column ``audio`` holds encoded bytes."""

    def load(self, sample_rate: int) -> Tensor:
        """float32 [T] at ``sample_rate`` Hz.

        Raises:
            AudioError: It cannot be used.
        """
        if self.row is None:
            return load_audio(self.path, sample_rate)
        name = f"{self.path}, row {self.row}"
        cell = _cell(self.path, self.row)
        data = cell.get("bytes") if isinstance(cell, Mapping) else None
        if not data:
            raise AudioError(f"{name}: expected encoded sound in the column 'audio', got none")
        try:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{name}: not audio that can be read ({error})") from error
        return prepare(torch.from_numpy(samples.mean(axis=1)), rate, sample_rate, name=name)


def _cell(path: Path, row: int) -> Any:
    """What the column ``audio`` holds, read one group of rows at a time."""
    for group, (start, stop) in enumerate(_groups(path)):
        if start <= row < stop:
            return _group(path, group)[row - start]
    raise AudioError(f"{path}: has no row {row}")


@cache
def _groups(path: Path) -> list[tuple[int, int]]:
    import pyarrow.parquet as pq

    meta = pq.read_metadata(path)
    found, start = [], 0
    for index in range(meta.num_row_groups):
        stop = start + meta.row_group(index).num_rows
        found.append((start, stop))
        start = stop
    return found


@lru_cache(maxsize=1)
def _group(path: Path, group: int) -> list[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows: list[Any] = file.read_row_group(group, columns=["audio"])["audio"].to_pylist()
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Something asked aloud."""

    id: str
    """Of letters, digits, ``/``, ``-``, ``_``: the name of its answer among recordings."""
    sound: Sound | None
    prompt: str
    """What is said in it."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the benchmark says of it, without its sound."""

    @property
    def response(self) -> str | None:
        """The answer, where the data came with answers."""
        found = self.row.get("response")
        return None if found is None else str(found)


def questions_sha256(questions: Sequence[Question]) -> str:
    """Of everything that is asked, and of every byte of its recordings."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(f"{question.id}\0{question.prompt}\0{dict(question.row)!r}\0".encode())
    for path in sorted({question.sound.path for question in questions if question.sound}):
        if path.is_file():
            digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def reply_texts(
    job: Job,
    questions: Sequence[Question],
    data_sha256: str,
    recognizer: SpeechRecognizer | None = None,
) -> tuple[list[Item], str]:
    """What the system answers to each question.

    Answers that the rows hold are taken as they are. Else a bundle answers, and a folder of
    recordings holds ``ID.wav`` or ``ID.flac``; both are put to text by a recognizer.

    Returns:
        An item each, whose note has the ``response``, or an error; and the recognizer's name.

    Raises:
        InputError: The system neither answers nor holds answers.
        PluginError: The recognizer's package is missing.
    """
    asked = [question for question in questions if question.response is None]
    name = GIVEN
    spoken: Iterator[Item] = iter(())
    if asked:
        recognizer = recognizer or Recognizer()
        name = recognizer.name
        spoken = iter(_spoken(job, asked, data_sha256, recognizer))
    items = [
        next(spoken) if question.response is None else _item(question, question.response, {})
        for question in questions
    ]
    return items, name


def _spoken(
    job: Job, questions: Sequence[Question], data_sha256: str, recognizer: SpeechRecognizer
) -> list[Item]:
    """Transcripts of the system's answers, kept in their journal."""
    folder = None if job.system.is_bundle else job.system.recordings
    rate = RECORDINGS_RATE if folder is not None else job.system.bundle.sample_rate

    def score(left: Sequence[Question]) -> Iterator[Item]:
        for first in range(0, len(left), QUESTIONS_AT_ONCE):
            portion = left[first : first + QUESTIONS_AT_ONCE]
            if folder is None:
                answers = _speak(job, portion)
            else:
                answers = [_find(folder, question.id, rate) for question in portion]
            yield from _hear(portion, answers, rate, recognizer)

    return replace(job, name=f"{job.name}-replies").run_items(
        questions, score, data_sha256, "answers", asr=recognizer.name
    )


def _speak(job: Job, questions: Sequence[Question]) -> list[Tensor | str]:
    """A bundle's answers; in the place of one that failed, why."""
    bundle = job.system.bundle
    rate = bundle.tokenizer.sample_rate
    answers: list[Tensor | str] = ["" for _ in questions]
    heard: list[tuple[int, Units]] = []
    for index, question in enumerate(questions):
        try:
            if question.sound is None:
                raise CorpusError(f"{question.id}: expected a recording of the question, got none")
            heard.append((index, bundle.encode(question.sound.load(rate), rate)))
        except (SpeechLMError, OSError) as error:
            answers[index] = str(error)
    for index, units in _reply(job, heard):
        if isinstance(units, str):
            answers[index] = units
        else:
            answers[index] = bundle.vocoder.decode([units], speaker=bundle.reply_voice)[0]
    return answers


def _reply(job: Job, heard: Sequence[tuple[int, Units]]) -> list[tuple[int, Units | str]]:
    """Units of the answers; a question too long for the model does not spoil the others."""
    if not heard:
        return []
    try:
        replies = job.system.bundle.reply_units(
            [units for _, units in heard], seeds=[job.seed] * len(heard)
        )
    except InputError as error:
        if len(heard) == 1:
            return [(heard[0][0], str(error))]
        half = len(heard) // 2
        return _reply(job, heard[:half]) + _reply(job, heard[half:])
    return [(index, units) for (index, _), units in zip(heard, replies, strict=True)]


def _find(folder: Path, name: str, sample_rate: int) -> Tensor | str:
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            try:
                return load_audio(path, sample_rate)
            except AudioError as error:
                return str(error)
    return f"{folder / name}.wav is missing: expected the recorded answer"


def _hear(
    questions: Sequence[Question],
    answers: Sequence[Tensor | str],
    sample_rate: int,
    recognizer: SpeechRecognizer,
) -> Iterator[Item]:
    """Items with transcripts; an answer of no sound has no words."""
    waves = [one for one in answers if isinstance(one, Tensor) and _sounds(one)]
    heard = iter(recognizer.transcribe_many(waves, sample_rate) if waves else [])
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, str):
            yield Item(id=question.id, note={"prompt": question.prompt}, error=answer)
        else:
            text = next(heard) if _sounds(answer) else ""
            yield _item(question, text, {"seconds": round(len(answer) / sample_rate, 3)})


def _sounds(wave: Tensor) -> bool:
    return len(wave) > 0 and bool(wave.any())


def _item(question: Question, text: str, more: Mapping[str, Any]) -> Item:
    return Item(id=question.id, note={"prompt": question.prompt, "response": text, **more})
