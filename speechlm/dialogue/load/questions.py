"""What the callers ask: questions of a corpus, any recordings, or questions spoken on the spot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from speechlm.audio import resample
from speechlm.data.corpus import Recording, open_corpus
from speechlm.errors import InputError

RATE = 24_000
"""What callers send and hear, Hz."""
POOL = 100
"""Different questions at most; many callers ask the same ones."""
LOUD_DB = -30.0
"""So far below the loudest moment is no speech any more, where nobody says when words are."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """Something to ask."""

    id: str
    samples: Tensor
    """float32 [T] at :data:`RATE`."""
    speech: tuple[int, int]
    """First and last sample of its words."""
    expected: str | None = None
    """What the answer says, where it is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """All that there are to ask."""

    asked: tuple[Question, ...]
    answers: tuple[str, ...]
    """What answers there may be, for a judge; empty where it is not known."""


def read_questions(path: Path, count: int, seed: int) -> Questions:
    """Draw questions from a folder of recordings or a corpus; of a corpus with answers those that
    nobody was trained on, where it says which.

    Raises:
        InputError: No recordings.
        CorpusError: It cannot be read.
    """
    from speechlm.evaluation.asked import find_questions

    corpus = open_corpus(path)
    if any(recording.reply for recording in corpus):
        found = find_questions(corpus)
        answers = tuple(sorted({one.expected for one in found}))
        unseen = [one for one in found if one.question.split == "test"] or found
        pairs: list[tuple[Recording, str | None]] = [(one.question, one.expected) for one in unseen]
    else:
        answers = ()
        pairs = [(recording, None) for recording in corpus]
    if not pairs:
        raise InputError(f"{path}: expected recordings to ask with, there are none")
    drawn = random.Random(seed).sample(pairs, min(count, POOL, len(pairs)))
    return Questions(asked=tuple(_recorded(*pair) for pair in drawn), answers=answers)


def speak_questions(count: int, seed: int) -> Questions:
    """Questions of the demo's world in the embedded voices.

    Raises:
        PluginError: The voices are not installed.
    """
    from speechlm.data.espeak import list_voices
    from speechlm.data.human import human_clips
    from speechlm.data.questions import questions
    from speechlm.data.rendering import SAMPLE_RATE, say

    texts = {name: clip.text.lower() for name, clip in human_clips("answers").items()}
    world, voices = questions(), list_voices(seed)
    drawn = random.Random(seed).sample(world, min(count, POOL, len(world)))
    asked = []
    for number, question in enumerate(drawn):
        wave, words, _ = say(question.wordings[0], voices[number % len(voices)], None)
        asked.append(
            Question(
                id=question.name,
                samples=resample(wave, SAMPLE_RATE, RATE),
                speech=_speech(wave, SAMPLE_RATE, [(start, end) for _, start, end in words]),
                expected=texts.get(question.answer),
            )
        )
    return Questions(asked=tuple(asked), answers=tuple(sorted(set(texts.values()))))


def _recorded(recording: Recording, expected: str | None) -> Question:
    wave = recording.load(RATE)
    words = [(word.start_s, word.end_s) for word in recording.words or ()]
    return Question(
        id=recording.id, samples=wave, speech=_speech(wave, RATE, words), expected=expected
    )


def _speech(wave: Tensor, rate: int, words: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """First and last sample of what is said, at :data:`RATE`."""
    if words:
        last = len(wave) * RATE // rate - 1
        return round(words[0][0] * RATE), min(last, round(words[-1][1] * RATE))
    level = wave.abs()
    loud = (level >= level.max() * 10 ** (LOUD_DB / 20)).nonzero().flatten().tolist()
    return loud[0] * RATE // rate, loud[-1] * RATE // rate
