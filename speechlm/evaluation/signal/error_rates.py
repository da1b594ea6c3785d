"""Errors of words, characters and phones: what a recognizer hears, against what was said.

All are pooled: errors of all recordings by words of all references, in percent, and not cut off at
100. One normaliser stands before both sides.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from speechlm.errors import PluginError

_LETTERS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Edits:
    """What turns a reference into what was heard."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def figure(self) -> tuple[float, float]:
        """Errors and length of the reference, so that their ratio is a percentage."""
        wrong = self.substitutions + self.deletions + self.insertions
        return 100.0 * wrong, float(self.hits + self.substitutions + self.deletions)


def normalise(text: str) -> str:
    """Words in small letters, one space between them; of signs, only apostrophes inside words.

    Numbers in digits stay digits: a recognizer that spells them will differ.
    """
    plain = unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join(_LETTERS.findall(plain.lower()))


def count_edits(expected: str, heard: str, of: Literal["words", "characters"]) -> Edits:
    """The fewest edits, by jiwer; spaces are characters too.

    Args:
        expected: Normalised, at least a word. Phones count as words.
        heard: Normalised.
        of: What is counted.

    Raises:
        PluginError: jiwer is not installed.
    """
    package = jiwer_package()
    process = package.process_words if of == "words" else package.process_characters
    found = process(expected, heard)
    return Edits(
        substitutions=found.substitutions,
        deletions=found.deletions,
        insertions=found.insertions,
        hits=found.hits,
    )


def jiwer_package() -> Any:
    """The package.

    Raises:
        PluginError: It is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise PluginError(
            "error rates need the package jiwer; run pip install 'speechlm[evaluate]'"
        ) from error
    return jiwer


def pronounce(text: str) -> str | None:
    """The phones of a normalised text, each word as CMUdict says it first; None if it lacks one.

    Raises:
        PluginError: pocketsphinx, whose dictionary it is, is not installed.
    """
    words = [_dictionary().get(word) for word in text.split()]
    known = [word for word in words if word is not None]
    return " ".join(known) if known and len(known) == len(words) else None


@cache
def _dictionary() -> dict[str, str]:
    try:
        from pocketsphinx import get_model_path
    except ImportError as error:
        raise PluginError(
            "phone error rates need the package pocketsphinx; run pip install 'speechlm[evaluate]'"
        ) from error
    lines = Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8")
    return dict(line.split(maxsplit=1) for line in lines.splitlines() if line.strip())
