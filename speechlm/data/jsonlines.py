"""Reading corpora in JSON lines, one recording a line; every defect is told with its line."""

from __future__ import annotations

import difflib
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from speechlm.data.corpus import Recording, Word
from speechlm.errors import CorpusError


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with their line numbers; gzipped or not.

    Raises:
        CorpusError: Not UTF-8, a line that is not an object, or gzip data that breaks off.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    number = 0
    try:
        with gzip.open(path) if gzipped else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise CorpusError(
                        f'{path}:{number}: expected an object {{"audio": …}}, '
                        f"got a {type(row).__name__}"
                    )
                yield number, row
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}:{number}: expected UTF-8 text; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{path}:{number}: expected one JSON object a line, got something else "
            f"({error.msg} at column {error.colno})"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(
            f"{path}:{number + 1}: the gzip data breaks off ({error}); copy the file again"
        ) from error


def read_recordings(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Recording]:
    """Recordings of the rows of ``path``; :func:`speechlm.data.corpus.open_corpus` has the keys.

    Raises:
        CorpusError: A key or value that is wrong, with file and line.
    """
    for number, row in rows:
        yield _recording(path, number, row)


_KEYS = (
    "audio",
    "id",
    "text",
    "speaker",
    "split",
    "reply",
    "words",
    "phones",
    "start",
    "duration",
    "channel",
)


def _recording(path: Path, number: int, row: dict[str, Any]) -> Recording:
    where = f"{path}:{number}"

    def fail(key: str, expected: str) -> NoReturn:
        raise CorpusError(f"{where}: {key!r}: expected {expected}, got {row.get(key)!r}")

    def text(key: str) -> str | None:
        value = row.get(key)
        if value is None or isinstance(value, str):
            return value
        return fail(key, "text")

    def seconds(key: str, default: float | None) -> float | None:
        value = row.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            fail(key, "seconds")
        if not math.isfinite(value) or value < 0 or (key == "duration" and value == 0):
            fail(key, "seconds" if key == "start" else "seconds above 0")
        return float(value)

    for key in row:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise CorpusError(f"{where}: unknown key {key!r}; {hint}known: {', '.join(_KEYS)}")
    audio = row.get("audio")
    if not isinstance(audio, str) or not audio or "\0" in audio:
        fail("audio", "the path of a recording")
    start_s, duration_s = seconds("start", 0.0), seconds("duration", None)
    assert start_s is not None
    channel = row.get("channel")
    if channel is not None and (type(channel) is not int or channel < 0):
        fail("channel", "a channel's number, from 0")
    default_id = audio
    if start_s or duration_s is not None:
        default_id += f"@{start_s:g}" + ("" if duration_s is None else f"+{duration_s:g}")
    if channel is not None:
        default_id += f"#{channel}"
    file = Path(path.parent, audio)
    return Recording(
        id=text("id") or default_id,
        source=f"{file} ({where})",
        text=text("text"),
        speaker=text("speaker"),
        split=text("split"),
        reply=text("reply"),
        words=_words(row.get("words"), lambda: fail("words", "[[word, start, end], …]")),
        phones=_words(row.get("phones"), lambda: fail("phones", "[[phone, start, end], …]")),
        audio=file,
        start_s=start_s,
        duration_s=duration_s,
        channel=channel,
    )


def _words(value: Any, fail: Callable[[], NoReturn]) -> tuple[Word, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        fail()
    words = []
    for item in value:
        match item:
            case [str(word), int() | float() as start_s, int() | float() as end_s] if (
                0 <= start_s <= end_s < math.inf
            ):
                words.append(Word(word, float(start_s), float(end_s)))
            case _:
                fail()
    return tuple(words)
