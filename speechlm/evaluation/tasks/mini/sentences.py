"""``mini-sblimp`` and ``mini-prosaudit``: sentences that are said rightly, and wrongly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speechlm.data.questions import DAYS, EXAMPLES, NUMBERS
from speechlm.data.rendering import SAMPLE_RATE
from speechlm.evaluation.tasks.mini.speaking import (
    Line,
    Spoken,
    held_out_voices,
    speak_all,
    write_gold,
)

NUM_VOICES = 2
NUM_RULES = 30
"""Sentences of each kind of rule."""
THINGS = ("boat", "candle", "dog", "eagle", "garden", "hat", "island", "lemon", "pencil", "river")
VERBS = ("fall", "stand", "move", "wait", "turn")
PLACES = ("near", "behind", "beside", "above")
SEEN = ("We saw", "They lost", "You found", "I counted")
PAUSE_S = 0.4
"""Of a pause that is put in, as in ProsAudit."""
NUM_AUDITED = 40
"""Sentences with a pause put in."""


class Minimal(NamedTuple):
    """A sentence and one that breaks a rule."""

    kind: str
    id: str
    right: str
    wrong: str


def minimal_pairs(seed: int) -> Iterator[Minimal]:
    """Agreement of verb with subject, of article with noun, and the order of words.

    A rule is broken as often by what makes a sentence longer as by what makes it shorter, and
    each time in another sentence: its length alone must not decide.
    """
    draw = random.Random(f"mini-sblimp {seed}")
    for number in range(NUM_RULES):
        noun, other = draw.sample(THINGS, 2)
        verb, place, seen = (draw.choice(words) for words in (VERBS, PLACES, SEEN))
        many = number % 2
        subject, right, wrong = (f"{noun}s", verb, f"{verb}s") if many else (noun, f"{verb}s", verb)
        yield Minimal(
            "agreement",
            str(number),
            f"The {subject} {right} {place} the {other}.",
            f"The {subject} {wrong} {place} the {other}.",
        )
        right, wrong = ("these", "this") if many else ("this", "these")
        yield Minimal(
            "determiner",
            str(number),
            f"{seen} {right} {subject} {place} the {other}.",
            f"{seen} {wrong} {subject} {place} the {other}.",
        )
        words = f"{seen} the {subject} {place} the {other}".split()
        swapped = draw.randrange(1, len(words) - 1)
        mixed = [*words]
        mixed[swapped : swapped + 2] = mixed[swapped : swapped + 2][::-1]
        yield Minimal("order", str(number), f"{' '.join(words)}.", f"{' '.join(mixed)}.")


def make_sblimp(folder: Path, seed: int) -> None:
    """Sentences and the same with a rule broken, in the voices of the demo's test."""
    rows: list[dict[str, object]] = []
    lines = []
    for one in minimal_pairs(seed):
        for voice in held_out_voices(seed, NUM_VOICES):
            for correct, text in ((1, one.right), (0, one.wrong)):
                rows.append(
                    {
                        "filename": f"{one.kind}_{one.id}_{voice.speaker}_{correct}",
                        "id": one.id,
                        "type": one.kind,
                        "subtype": "",
                        "voice": voice.speaker,
                        "correct": correct,
                        "transcription": text,
                    }
                )
                lines.append(Line(text, voice))
    write_gold(folder, rows, [spoken.wave for spoken in speak_all(lines, "mini-sblimp")])


def clauses(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Sentences of two clauses, between which a pause is natural."""
    days, words = list(DAYS), list(EXAMPLES)
    while True:
        day, other = draw.sample(days, 2)
        first, second = draw.sample(words, 2)
        number = draw.choice(NUMBERS[2:13])
        yield from (
            (f"When {day} has come,", f"we see the {first} and the {second} again."),
            (f"If the {first} is yellow,", f"please tell me before {day}."),
            (f"After we counted to {number},", f"the {second} was behind the {first}."),
            (f"Because the {first} was lost on {day},", f"we came back on {other}."),
        )


def make_prosaudit(folder: Path, seed: int) -> None:
    """The same pause between clauses and within one; between words and within a word."""
    draw = random.Random(f"mini-prosaudit {seed}")
    sentences: list[tuple[str, str]] = []
    for pair in clauses(draw):
        sentences += [pair] if pair not in sentences else []
        if len(sentences) == NUM_AUDITED:
            break
    voices = held_out_voices(seed, NUM_VOICES)
    lines = [Line(" ".join(pair).replace(",", ""), voice) for pair in sentences for voice in voices]
    spoken = iter(speak_all(lines, "mini-prosaudit"))
    rows: list[dict[str, object]] = []
    waves = []
    for number, (before, _) in enumerate(sentences):
        boundary = len(before.split())
        for voice in voices:
            one = next(spoken)
            inside = draw.choice(
                [place for place in range(2, len(one.words) - 1) if abs(place - boundary) > 1]
            )
            place, middle_s = _longest_word(one)
            cuts = {
                "protosyntax": (one.words[boundary][1], one.words[inside][1]),
                "lexical": (one.words[place][1], middle_s),
            }
            for kind, times in cuts.items():
                for correct, time_s in zip((1, 0), times, strict=True):
                    name = f"{kind}_{number}_{voice.speaker}"
                    rows.append({"filename": f"{name}_{correct}", "id": f"{kind}-{number}"})
                    rows[-1] |= {"type": kind, "voice": voice.speaker, "correct": correct}
                    waves.append(with_pause(one.wave, time_s))
    write_gold(folder, rows, waves)


def with_pause(wave: Tensor, time_s: float) -> Tensor:
    """A wave float32 [T] with silence put in, and short fades so that nothing clicks."""
    place = round(time_s * SAMPLE_RATE)
    fade = torch.linspace(0.0, 1.0, round(0.005 * SAMPLE_RATE))
    before, after = wave[:place].clone(), wave[place:].clone()
    before[-len(fade) :] *= fade.flip(0)[-len(before) :]
    after[: len(fade)] *= fade[: len(after)]
    return torch.cat([before, torch.zeros(round(PAUSE_S * SAMPLE_RATE)), after])


def _longest_word(spoken: Spoken) -> tuple[int, float]:
    """A word's place, neither the first nor the last, and where a phone ends near its middle, s."""
    lengths = [end - start for _, start, end in spoken.words]
    place = max(range(1, len(lengths) - 1), key=lengths.__getitem__)
    _, start, end = spoken.words[place]
    edges = [until for _, _, until in spoken.phones if start + 0.03 < until < end - 0.03]
    middle = (start + end) / 2
    return place, min(edges, key=lambda edge: abs(edge - middle)) if edges else middle
