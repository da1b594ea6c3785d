"""Reading a text that is to be read aloud: an utterance a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechlm.errors import CorpusError

MAX_CHARACTERS = 1000
"""Longest line of a text, about a minute of speech."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The utterances of a text file with their line numbers, which count from 1.

    Raises:
        CorpusError: It cannot be read, is not UTF-8, holds no text, or a line that nobody can say.
    """
    empty = True
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                text = " ".join(line.split())
                if not text:
                    continue
                if len(text) > MAX_CHARACTERS:
                    raise CorpusError(
                        f"{path}:{number}: {len(text)} characters long, expected at most "
                        f"{MAX_CHARACTERS}; put one sentence on a line"
                    )
                if not any(character.isalnum() for character in text) or "\0" in text:
                    raise CorpusError(f"{path}:{number}: expected words to speak, got {text!r}")
                empty = False
                yield number, text
    except OSError as error:
        raise CorpusError(f"{path}: the text cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}; "
            "save it as UTF-8"
        ) from error
    if empty:
        raise CorpusError(f"{path}: expected one utterance a line, got no text at all")
