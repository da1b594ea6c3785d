"""Audio files that hold less than their header promises.

libsndfile reads the part of a cut WAV, AIFF, AU, CAF or W64 that is there and says nothing, so the
promise is read from the container here. Files of unknown length, as programs write into a
pipe, promise nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SLACK_BYTES = 64
"""Some writers count their header into the samples; so little missing is no loss."""
_UNKNOWN = 0x7FFFF000
"""Sizes from here on are what sox and ffmpeg write when they cannot know."""


def truncation(path: Path) -> str | None:
    """Say how a file was cut short; None when it is whole or its format does not tell.

    Args:
        path: WAV (RIFF, RF64), AIFF, AU, CAF, W64 or Ogg; others are taken for whole, and
            their decoders notice a cut.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic == b"OggS":
            return _ogg_truncation(file, size)
        for start, promised in _samples_chunk(file, magic):
            held = size - start
            if promised > held + SLACK_BYTES:
                return f"its header promises {promised} bytes of samples, it holds {held}"
    return None


def _samples_chunk(file: BinaryIO, magic: bytes) -> Iterator[tuple[int, int]]:
    """Give where the samples start and how many bytes they should be, if that is told."""
    try:
        if magic == b".snd":
            start, promised = struct.unpack(">II", file.read(8))
            if promised < _UNKNOWN:
                yield start, promised
        elif magic == b"riff":
            yield from _w64_chunk(file)
        elif magic in (b"RIFF", b"RF64", b"BW64"):
            yield from _iff_chunk(file, "<", b"data")
        elif magic == b"caff":
            yield from _caf_chunk(file)
        elif magic == b"FORM":
            yield from _iff_chunk(file, ">", b"SSND")
    except struct.error:
        return  # cut within the header: the decoder says so


def _iff_chunk(file: BinaryIO, order: str, wanted: bytes) -> Iterator[tuple[int, int]]:
    file.seek(12)
    long_size = None
    while True:
        name, size = struct.unpack(f"{order}4sI", file.read(8))
        start = file.tell()
        if name == b"ds64":
            _, long_size = struct.unpack("<QQ", file.read(16))
        if name == wanted:
            if long_size is not None and size == 0xFFFFFFFF:
                yield start, long_size
            elif size < _UNKNOWN:
                yield start, size
            return
        file.seek(start + size + size % 2)


def _w64_chunk(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Sony Wave64: 16-byte names, 64-bit sizes that count their own header, 8-byte steps."""
    file.seek(40)
    while True:
        name, size = struct.unpack("<16sQ", file.read(24))
        start = file.tell()
        if name[:4] == b"data":
            yield start, size - 24
            return
        file.seek(start - 24 + max(24, -(-size // 8) * 8))


def _caf_chunk(file: BinaryIO) -> Iterator[tuple[int, int]]:
    file.seek(8)
    while True:
        name, size = struct.unpack(">4sq", file.read(12))
        start = file.tell()
        if name == b"data":
            if size >= 0:  # -1 says that it is not known
                yield start, size
            return
        file.seek(start + max(0, size))


def _ogg_truncation(file: BinaryIO, size: int) -> str | None:
    """Every Ogg stream ends by a page that says it is the last."""
    file.seek(max(0, size - 2 * 65_536))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) >= 27 and page[5] & 4:
        lengths = page[27 : 27 + page[26]]
        if len(lengths) == page[26] and len(page) >= 27 + page[26] + sum(lengths):
            return None
    return "its last Ogg page is missing"
