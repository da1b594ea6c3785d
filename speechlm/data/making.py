"""Making corpora: spoken questions with recorded answers, dialogues of them, or a text aloud.

The work is cut into *batches*: a folder of up to :data:`BATCH_SIZE` utterances of one voice,
made in one go by one process and renamed into place when it is whole. So a killed run loses
no more than the batches in flight, and a rerun makes exactly the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from speechlm.config import CorpusConfig, RunConfig
from speechlm.data import human
from speechlm.data.corpus import MANIFEST_NAME, open_corpus
from speechlm.data.dialogues import Dialogue, plan_dialogues
from speechlm.data.espeak import Voice, list_voices
from speechlm.data.events import EVENTS_NAME, read_events
from speechlm.data.questions import Question, questions
from speechlm.data.situations import write_situations
from speechlm.data.text_lines import read_lines
from speechlm.errors import CorpusError, PartialFailure
from speechlm.files import read_json, write_aside, write_folder_aside, write_json
from speechlm.progress import progress, say

BATCH_SIZE = 256
"""Most utterances that a kill can cost a process."""
ANSWERS_NAME = "answers"
SITUATIONS_NAME = "situations"
"""The test's dialogues cut into what happens in them, beside a manifest of dialogues."""
ROWS_NAME = "rows.jsonl"
"""A batch's share of the manifest."""
SETTINGS_NAME = "making.json"
"""What a made corpus was made of; another configuration is refused beside it."""
SOUND_VERSION = 1
"""Raised whenever the same plan would give other samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One thing to say."""

    id: str
    text: str
    voice: Voice
    split: str
    reply: str | None = None
    room_seed: str | None = None
    """Draws the room, microphone and noise that it is heard with; None for the plain voice."""
    origin: str
    """What errors call it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one process makes in one go."""

    name: str
    """Its folder's name."""
    utterances: tuple[Utterance | Dialogue, ...]


def make_corpus(config: RunConfig) -> None:
    """Write the corpus that ``config.corpus`` asks for into ``config.corpus_path``.

    Safe to kill and to run again: what is whole is kept, and the end is the same, byte for byte.

    Raises:
        CorpusError: The folder holds something else, the text cannot be used, or more voices
            are asked for than there are.
        PluginError: espeak-ng is not installed.
        PartialFailure: A process died or the disk is full; a rerun resumes.
    """
    folder = config.corpus_path
    batches = _plan(config)
    try:
        _claim(folder, _settings(config, batches))
        _fill(folder, batches, config.corpus)
        if config.corpus.kind == "dialogue" and not (folder / SITUATIONS_NAME).is_dir():
            users = [each for each in open_corpus(folder) if each.split == "test" and each.reply]
            write_situations(folder / SITUATIONS_NAME, users, read_events(folder / EVENTS_NAME))
    except OSError as error:
        raise PartialFailure(
            f"{error.filename or folder}: {error.strerror}; what is whole is kept: "
            "mend it and run the same command again"
        ) from error
    except BrokenProcessPool as error:
        raise PartialFailure(
            "a process that was speaking died (out of memory?); what is whole is kept: run "
            "the same command again, with a smaller corpus.num_workers if it recurs"
        ) from error


def _fill(folder: Path, batches: list[Batch], config: CorpusConfig) -> None:
    audio = folder / "audio"
    for leftover in (*audio.glob(".*-*"), *folder.glob(".aside-*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    names = [batch.name for batch in batches]
    if config.kind == "qa":
        names = [ANSWERS_NAME, *names]
        if not (audio / ANSWERS_NAME).is_dir():
            _copy_answers(audio / ANSWERS_NAME)

    missing = [batch for batch in batches if not (audio / batch.name).is_dir()]
    if not missing and (folder / MANIFEST_NAME).is_file():
        say(f"{folder}: the corpus is complete")
        return
    total = sum(len(batch.utterances) for batch in missing)
    what = "dialogues" if config.kind == "dialogue" else "utterances"
    with progress("speaking", total, what) as advance:
        for done in _make(missing, audio, config.num_workers or _num_cores()):
            advance(done)
    if config.kind == "dialogue":
        _gather(folder / EVENTS_NAME, [audio / name / EVENTS_NAME for name in names])
    _gather(folder / MANIFEST_NAME, [audio / name / ROWS_NAME for name in names])


def _gather(path: Path, parts: Iterable[Path]) -> None:
    with write_aside(path) as aside, aside.open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())


def _plan(config: RunConfig) -> list[Batch]:
    """All that is to be said, from the configuration alone."""
    plans: dict[str, Callable[[RunConfig], Iterable[Utterance | Dialogue]]] = {
        "qa": _ask,
        "dialogue": _converse,
        "text": _read_aloud,
    }
    by_speaker: dict[str, list[Utterance | Dialogue]] = {}
    for utterance in plans[config.corpus.kind](config):
        by_speaker.setdefault(utterance.voice.speaker, []).append(utterance)
    return [
        Batch(
            name=f"{speaker}.{start // BATCH_SIZE}",
            utterances=tuple(spoken[start : start + BATCH_SIZE]),
        )
        for speaker, spoken in by_speaker.items()
        for start in range(0, len(spoken), BATCH_SIZE)
    ]


def split_voices(config: CorpusConfig, seed: int) -> dict[str, list[Voice]]:
    """Share the voices out among the splits.

    No voice is in two splits, and no variant of valid or test is heard in training in any
    accent.

    Raises:
        CorpusError: More voices are asked for than there are.
    """
    voices = list_voices(seed)
    held_out = config.num_test_voices + config.num_valid_voices
    test = voices[: config.num_test_voices]
    valid = voices[config.num_test_voices : held_out]
    kept = {_timbre(voice) for voice in voices[:held_out]}
    train = [voice for voice in voices[held_out:] if _timbre(voice) not in kept]
    if len(kept) < held_out or len(train) < config.num_train_voices:
        raise CorpusError(
            f"expected at most {len({_timbre(v) for v in voices}) - 1} voices for valid and test "
            f"together and {len(train)} besides for train, got {held_out} and "
            f"{config.num_train_voices}; lower corpus.num_train_voices and its neighbours"
        )
    return {"train": train[: config.num_train_voices], "valid": valid, "test": test}


def _timbre(voice: Voice) -> str:
    return voice.variant or voice.name


def _converse(config: RunConfig) -> Iterator[Dialogue]:
    for split, voices in split_voices(config.corpus, config.seed).items():
        renditions = config.corpus.renditions if split == "train" else 1
        for voice in voices:
            for dialogue in plan_dialogues(voice, split, questions(), renditions, config.seed):
                yield replace(dialogue, voice=_vary(voice, random.Random(dialogue.id)))


def _ask(config: RunConfig) -> Iterator[Utterance]:
    for split, voices in split_voices(config.corpus, config.seed).items():
        renditions = config.corpus.renditions if split == "train" else 1
        for voice in voices:
            for question in questions():
                for rendition in range(renditions):
                    yield _ask_once(config.seed, split, voice, question, rendition)


def _ask_once(seed: int, split: str, voice: Voice, question: Question, rendition: int) -> Utterance:
    id = f"{voice.speaker}.{question.name}.{rendition}"
    draw = random.Random(f"{seed} {voice.speaker} {question.name}")
    first_wording = draw.randrange(len(question.wordings))
    return Utterance(
        id=id,
        text=question.wordings[(first_wording + rendition) % len(question.wordings)],
        voice=_vary(voice, random.Random(f"{seed} {id}")),
        split=split,
        reply=f"answer.{question.answer}",
        room_seed=f"{seed} {id} room" if split == "train" else None,
        origin=f"question {question.name!r}",
    )


def _vary(voice: Voice, draw: random.Random) -> Voice:
    """As nobody says a thing twice in the same way."""
    return replace(
        voice,
        pitch=draw.randint(30, 70),
        pitch_range=draw.randint(30, 70),
        speed=draw.randint(135, 195),
    )


def _read_aloud(config: RunConfig) -> Iterator[Utterance]:
    path = config.corpus.text
    assert path is not None  # CorpusConfig checks it
    by_split = split_voices(config.corpus, config.seed)
    voices = [(split, voice) for split, those in by_split.items() for voice in those]
    for number, text in read_lines(path):
        draw = random.Random(f"{config.seed} line {number}")
        split, voice = draw.choice(voices)
        yield Utterance(
            id=f"line-{number}",
            text=text,
            voice=_vary(voice, draw),
            split=split,
            origin=f"{path}:{number}",
        )


def _settings(config: RunConfig, batches: list[Batch]) -> dict[str, Any]:
    """What decides every byte of the corpus."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(json.dumps(asdict(batch), sort_keys=True).encode())
    corpus = config.corpus
    text = corpus.text.read_bytes() if corpus.kind == "text" and corpus.text else b""
    return {
        "kind": corpus.kind,
        "text_sha256": hashlib.sha256(text).hexdigest()[:16] if text else None,
        "seed": config.seed,
        "num_train_voices": corpus.num_train_voices,
        "num_valid_voices": corpus.num_valid_voices,
        "num_test_voices": corpus.num_test_voices,
        "renditions": corpus.renditions,
        "flite": any(u.voice.engine == "flite" for batch in batches for u in batch.utterances),
        "espeakng_loader": metadata.version("espeakng-loader"),
        "sound_version": SOUND_VERSION,
        "plan": digest.hexdigest()[:16],
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that the folder holds this corpus, a part of it, or nothing."""
    path = folder / SETTINGS_NAME
    if path.is_file():
        made_with = read_json(path)
        for key, value in settings.items():
            if made_with.get(key) != value:
                raise CorpusError(
                    f"{folder} holds a corpus made with {key} {made_with.get(key)!r}, now it is "
                    f"{value!r}; delete that folder or choose another output"
                )
    elif folder.exists() and (not folder.is_dir() or not _is_empty(folder)):
        raise CorpusError(
            f"{folder} is there and was not made by 'speechlm corpus'; "
            "delete it or choose another output"
        )
    else:
        write_json(path, settings)


def _is_empty(folder: Path) -> bool:
    """Holding nothing but what a killed run was writing."""
    return all(path.name.startswith(".aside-") for path in folder.iterdir())


def _copy_answers(folder: Path) -> None:
    with write_folder_aside(folder) as aside:
        rows = []
        for name, clip in human.human_clips("answers").items():
            shutil.copyfile(clip.path, aside / clip.path.name)
            rows.append(
                {
                    "id": f"answer.{name}",
                    "audio": f"audio/{folder.name}/{clip.path.name}",
                    "text": clip.text,
                    "speaker": human.SPEAKER,
                }
            )
        shutil.copyfile(human.recordings_folder() / "LICENSE.md", aside / "LICENSE.md")
        _write_rows(aside / ROWS_NAME, rows)


def _make(batches: list[Batch], folder: Path, num_workers: int) -> Iterator[int]:
    """Make the batches; give the size of each as it is done."""
    if min(num_workers, len(batches)) <= 1:
        yield from map(partial(_make_batch, folder), batches)
        return
    with ProcessPoolExecutor(
        min(num_workers, len(batches)),
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    ) as executor:
        futures = [executor.submit(_make_batch, folder, batch) for batch in batches]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work in order
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_the_parent() -> None:
        parent.join()
        os._exit(1)  # it was killed: nobody is left to shut this process down

    threading.Thread(target=follow_the_parent, daemon=True).start()


def _make_batch(folder: Path, batch: Batch) -> int:
    from speechlm.data import espeak
    from speechlm.data.dialogue_rendering import write_dialogue

    espeak.restart()
    with write_folder_aside(folder / batch.name) as aside:
        rows: list[dict[str, Any]] = []
        events: list[dict[str, Any]] = []
        for utterance in batch.utterances:
            file_name = f"{utterance.id.removeprefix(utterance.voice.speaker + '.')}.flac"
            happened: list[dict[str, Any]] = []
            try:
                if isinstance(utterance, Dialogue):
                    made, happened = write_dialogue(utterance, aside / file_name)
                else:
                    made = [_write_utterance(utterance, aside / file_name)]
            except CorpusError as error:
                raise CorpusError(f"{utterance.origin}: {error}") from error
            audio = f"audio/{batch.name}/{file_name}"
            rows += [{"id": row["id"], "audio": audio, **row} for row in made]
            events += happened
        _write_rows(aside / ROWS_NAME, rows)
        if events:
            _write_rows(aside / EVENTS_NAME, events)
    return len(batch.utterances)


def _write_utterance(utterance: Utterance, path: Path) -> dict[str, Any]:
    """Render an utterance; gives its row without ``audio``."""
    from speechlm.data.rendering import render

    words, phones = render(utterance.text, utterance.voice, utterance.room_seed, path)
    row: dict[str, Any] = {
        "id": utterance.id,
        "text": utterance.text,
        "speaker": utterance.voice.speaker,
        "split": utterance.split,
    }
    if utterance.reply is not None:
        row["reply"] = utterance.reply
    if words:
        row["words"] = words
    if phones:
        row["phones"] = phones
    return row


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
