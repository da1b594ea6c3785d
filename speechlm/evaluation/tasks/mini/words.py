"""``mini-swuggy``: words, and non-words that differ in one phone."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from speechlm.data.espeak import Voice, spell
from speechlm.data.questions import questions
from speechlm.errors import PluginError
from speechlm.evaluation.tasks.mini.speaking import Line, held_out_voices, speak_all, write_gold

LEAST_LETTERS = 4
WORDS = tuple(
    dict.fromkeys(
        word.lower()
        for question in questions()
        for text in (*question.wordings, question.answer)
        for word in re.findall(r"[A-Za-z]+", text)
        if len(word) >= LEAST_LETTERS
    )
)
"""All that is asked and answered in the demo's world, but for the shortest."""
NUM_VOICES = 4

ALIKE = (
    ("p", "b", "t", "d", "k", "g"),
    ("f", "v", "s", "z", "S", "T"),
    ("m", "n"),
    ("l", "r", "w", "j"),
    ("I", "E", "aI", "oU", "eI", "u:", "i:", "O:"),
)
"""Phones of espeak-ng that take each other's place in a non-word."""
COARSE = {
    "tS": "CH",
    "dZ": "JH",
    "T": "TH",
    "D": "DH",
    "S": "SH",
    "Z": "ZH",
    "N": "NG",
    "j": "Y",
    "h": "HH",
    "t#": "T",
    "t2": "T",
    "r-": "R",
    "n-": "N",
    "@L": "E L",
    "3": "E R",
    "3:": "E R",
    "A@": "A R",
    "O@": "A R",
    "e@": "E R",
    "i@": "I R",
    "i@3": "I R",
    "U@": "U R",
    "aI@": "AY R",
    "o@": "A R",
    "I#": "E",
    "a#": "E",
    "@": "E",
    "V": "E",
    "I2": "E",
    "I": "E",
    "E": "E",
    "e": "E",
    "i": "I",
    "i:": "I",
    "a": "A",
    "aa": "A",
    "A:": "A",
    "A": "A",
    "0": "A",
    "O": "A",
    "O:": "A",
    "O2": "A",
    "U": "U",
    "u:": "U",
    "u": "U",
    "oU": "O",
    "eI": "EY",
    "aI": "AY",
    "OI": "OY",
    "aU": "AW",
}
"""espeak-ng's phones, vowels that are easily taken for each other as one."""
COARSE_VOWELS = {
    "AA": "A",
    "AO": "A",
    "AE": "A",
    "AH": "E",
    "IH": "E",
    "EH": "E",
    "ER": "E R",
    "IY": "I",
    "UH": "U",
    "UW": "U",
    "OW": "O",
}
"""The same of the dictionary's."""


def make_swuggy(folder: Path, seed: int) -> None:
    """Words, and each with one phone changed so that no dictionary knows it; four voices.

    Both are said from their phones, so nothing but that phone tells them apart.

    Raises:
        PluginError: espeak-ng or pocketsphinx, whose dictionary is used, is not installed.
    """
    spelled = {word: spell(word, Voice()) for word in WORDS}
    known = known_words() | {coarse(phones) for phones in spelled.values()}
    draw = random.Random(f"mini-swuggy {seed}")
    rows, lines = [], []
    for word, phones in spelled.items():
        if not (possible := list(non_words(phones, known))):
            continue
        changed = draw.choice(possible)
        for voice in held_out_voices(seed, NUM_VOICES):
            for correct, said in ((1, phones), (0, changed)):
                rows.append({"id": word, "voice": voice.speaker, "correct": correct})
                rows[-1]["filename"] = f"{word}_{voice.speaker}_{correct}"
                lines.append(Line(f"[[{' '.join(said)}]]", voice))
    write_gold(folder, rows, [spoken.wave for spoken in speak_all(lines, "mini-swuggy")])


def known_words() -> set[str]:
    """How every word of pocketsphinx's dictionary sounds, coarsely.

    Raises:
        PluginError: pocketsphinx is not installed.
    """
    try:
        from pocketsphinx import get_model_path
    except ImportError:
        raise PluginError(
            "mini-swuggy needs a dictionary: pip install 'speechlm[evaluate]'"
        ) from None
    lines = Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8")
    return {
        " ".join(COARSE_VOWELS.get(phone, phone) for phone in line.split()[1:])
        for line in lines.splitlines()
    }


def non_words(phones: list[str], known: set[str]) -> Iterator[list[str]]:
    """Every way to change one phone into a like one that makes no word."""
    for place, phone in enumerate(phones):
        stress, bare = re.fullmatch(r"([',%=_]*)(.*)", phone, re.DOTALL).groups()  # type: ignore[union-attr]
        for alike in ALIKE:
            for other in alike:
                if bare in alike and other != bare:
                    changed = [*phones[:place], stress + other, *phones[place + 1 :]]
                    if coarse(changed) not in known:
                        yield changed


def coarse(phones: list[str]) -> str:
    """espeak-ng's phones as :func:`known_words` has them."""
    bare = (re.sub(r"[',%=_|;]", "", phone) for phone in phones)
    sounds = " ".join(COARSE.get(phone, phone.upper()) for phone in bare if phone)
    return sounds.replace("R R", "R")
