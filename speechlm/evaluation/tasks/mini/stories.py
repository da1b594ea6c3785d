"""``mini-tsc`` and ``mini-ssc``: the shortest stories there are, a question and what follows it."""

from __future__ import annotations

import random
from pathlib import Path

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.data.questions import DAYS, MONTHS, NUMBERS, ORDINALS, TENS, questions
from speechlm.data.rendering import SAMPLE_RATE
from speechlm.evaluation.tasks.mini.speaking import Line, held_out_voices, speak_all, write_wave

NUM_VOICES = 12


TOPICS = {"day": DAYS, "month": MONTHS, "place": ORDINALS, "number": (*NUMBERS, *TENS)}


def make_tsc(folder: Path, seed: int) -> None:
    """Ends of another topic: a day where a number is asked for."""
    _make(folder, "mini-tsc", seed, same_topic=False)


def make_ssc(folder: Path, seed: int) -> None:
    """Wrong ends of the same topic: another day."""
    _make(folder, "mini-ssc", seed, same_topic=True)


def topic(answer: str) -> str:
    """A day, a month, a place, a number, or a word of no such kind."""
    found = (name for name, words in TOPICS.items() if answer in {word.lower() for word in words})
    return next(found, "word")


def _make(folder: Path, name: str, seed: int, *, same_topic: bool) -> None:
    """Questions in the voices of the demo's test, ends as they were recorded by a human voice."""
    draw = random.Random(f"{name} {seed}")
    clips = human_clips("answers")
    answers = sorted({question.answer for question in questions()})
    voices = held_out_voices(seed, NUM_VOICES)
    lines, ends = [], []
    for question in questions():
        others = [
            answer
            for answer in answers
            if answer != question.answer and (topic(answer) == topic(question.answer)) == same_topic
        ]
        ends.append((question, draw.choice(others)))
        lines.append(Line(question.wordings[0], draw.choice(voices)))
    for (question, other), spoken in zip(ends, speak_all(lines, name), strict=True):
        write_wave(folder / f"{question.name}_mutual.wav", spoken.wave)
        for kind, answer in (("correct", question.answer), ("incorrect", other)):
            wave = load_audio(clips[answer].path, SAMPLE_RATE)
            write_wave(folder / f"{question.name}_{kind}.wav", wave)
