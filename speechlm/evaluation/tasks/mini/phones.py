"""ABX made on the spot: phones between the same neighbours, said by voices that training lacks.

Needs no data and little time; its figures are not comparable with papers. Every phone comes
several times in each voice, at another pitch and speed, so there is something to tell apart
within a voice as well as across.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from speechlm.config import CorpusConfig
from speechlm.data.espeak import Voice, restart
from speechlm.data.making import split_voices
from speechlm.data.rendering import render
from speechlm.evaluation.abx import HEADER
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.phone_abx import measure_folder
from speechlm.evaluation.tasks.results import Result
from speechlm.files import write_folder_aside
from speechlm.progress import progress

NUM_VOICES = 4
TIMES = 3
"""How often each voice says all of it."""
ITEMS_NAME = "phones.item"
VOWELS = ("I", "E", "a", "0", "i:", "u:", "eI", "aI")
CONSONANTS = ("p", "b", "t", "d", "k", "f", "s", "z", "m", "n")
AROUND_VOWELS = (("b", "d"), ("s", "t"), ("k", "n"), ("m", "s"))
AROUND_CONSONANTS = (("a", "a"), ("E", "E"))
"""Phones of espeak-ng, and what they are said between."""

Span = tuple[str, float, float]
"""A phone with its start and end, s."""


def run_mini_abx(job: Job) -> Iterator[Result]:
    """Whether units or features tell apart phones that are made on the spot."""
    make_abx(job.made(), job.seed)
    yield from measure_folder(job, job.made())


def make_abx(folder: Path, seed: int) -> None:
    """Write recordings and an item file; nothing where they are.

    Raises:
        PluginError: espeak-ng is not installed.
    """
    if (folder / ITEMS_NAME).is_file():
        return
    voices = split_voices(CorpusConfig(), seed)["test"][:NUM_VOICES]
    restart()
    lines = [" ".join(HEADER)]
    with (
        write_folder_aside(folder) as aside,
        progress("mini-abx", len(voices) * TIMES * 2, "recordings") as advance,
    ):
        for voice in voices:
            for time in range(TIMES):
                for kind, words in (("vowels", vowel_words()), ("consonants", consonant_words())):
                    name = f"{voice.speaker}_{kind}_{time}"
                    draw = random.Random(f"mini-abx {seed} {name}")
                    text = " _: ".join(draw.sample(words, len(words)))
                    said = _vary(voice, draw)
                    _, phones = render(f"[[{text}]]", said, None, aside / f"{name}.flac")
                    lines += [
                        f"{name} {start_s} {end_s} {phone} {before} {after} {voice.speaker}"
                        for (before, _, _), (phone, start_s, end_s), (after, _, _) in words_of(
                            phones
                        )
                    ]
                    advance()
        (aside / ITEMS_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def vowel_words() -> list[str]:
    return [f"{before} '{v} {after}" for before, after in AROUND_VOWELS for v in VOWELS]


def consonant_words() -> list[str]:
    return [f"{before} {c} '{after}" for before, after in AROUND_CONSONANTS for c in CONSONANTS]


def words_of(phones: Sequence[Span]) -> Iterator[tuple[Span, Span, Span]]:
    """The words of three phones, with pauses between them; others, as engines may make, are not."""
    word: list[Span] = []
    for span in (*phones, ("", -1.0, -1.0)):
        if word and span[1] != word[-1][2]:
            if len(word) == 3:
                yield word[0], word[1], word[2]
            word = []
        word.append(span)


def _vary(voice: Voice, draw: random.Random) -> Voice:
    return replace(voice, pitch=draw.randint(40, 60), speed=draw.randint(140, 180))
