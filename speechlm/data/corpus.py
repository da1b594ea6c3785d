"""Recordings in one internal form: a folder of audio, JSON lines, or a lhotse CutSet.

Opening reads names and manifests only; audio is read, and its errors raised, by
:meth:`Recording.load`, so that one bad file never hides the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from speechlm.errors import CorpusError

if TYPE_CHECKING:
    from torch import Tensor

    from speechlm.data.cuts import ShardMember

MANIFEST_NAME = "corpus.jsonl"
"""A folder that holds this file is read through it."""


class Word(NamedTuple):
    """A spoken word and when."""

    word: str
    start_s: float
    """Seconds from the recording's start."""
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One recording of a corpus, not yet read; picklable."""

    id: str
    """Unique in its corpus."""
    source: str
    """The file or cut, as errors name it."""
    text: str | None = None
    speaker: str | None = None
    split: str | None = None
    reply: str | None = None
    """Id of the recording that answers this one."""
    words: tuple[Word, ...] | None = None
    phones: tuple[Word, ...] | None = None
    """Its phones and when, in whatever letters."""
    audio: Path | None = None
    """Its file; None for a cut."""
    start_s: float = 0.0
    """Where it begins in its file, seconds."""
    duration_s: float | None = None
    """How much of the file it is, seconds; None for all the rest."""
    channel: int | None = None
    """Which channel of its file, counted from 0; None for all of them, mixed down to one."""
    cut: Any = None
    """Its lhotse cut, where a file and times do not say it all."""
    member: ShardMember | None = None
    """Where the audio of a cut in a Shar folder is."""

    def load(self, sample_rate: int) -> Tensor:
        """Read it: one channel, float32 [T] at ``sample_rate`` Hz.

        Raises:
            AudioError: See :func:`speechlm.audio.load_audio`.
        """
        from speechlm.audio import load_audio

        if self.cut is not None:
            from speechlm.data.cuts import load_cut

            return load_cut(self.cut, self.member, sample_rate, name=self.source)
        assert self.audio is not None
        return load_audio(
            self.audio,
            sample_rate,
            start_s=self.start_s,
            duration_s=self.duration_s,
            channel=self.channel,
        )

    def measure_s(self) -> float:
        """How long it is by what its file says of itself, s, without reading it.

        Raises:
            AudioError: There is no such file, or it is no audio.
        """
        from speechlm.audio import measure_audio

        if self.cut is not None:
            return float(self.cut.duration)
        if self.duration_s is not None:
            return self.duration_s
        assert self.audio is not None
        return measure_audio(self.audio) - self.start_s


class Corpus:
    """Recordings in a stable order, by position or by id."""

    def __init__(self, recordings: list[Recording]) -> None:
        self._recordings = recordings
        self._by_id = {recording.id: recording for recording in recordings}

    def __len__(self) -> int:
        return len(self._recordings)

    def __iter__(self) -> Iterator[Recording]:
        return iter(self._recordings)

    def __getitem__(self, id: str) -> Recording:
        return self._by_id[id]

    def __contains__(self, id: object) -> bool:
        return id in self._by_id


def open_corpus(path: Path) -> Corpus:
    """Open a folder of audio, JSON lines, or a lhotse CutSet (a manifest or a Shar folder).

    A folder's recordings are found in all its subfolders, by extension, and called by their
    path in it. A folder with a ``corpus.jsonl`` is read through that instead. JSON lines hold a
    recording each::

        {"audio": "a/b.flac", "id": …, "text": …, "speaker": …, "split": …, "reply": …,
         "words": [["hello", 0.1, 0.5], …], "phones": [["h", 0.1, 0.2], …],
         "start": seconds, "duration": seconds, "channel": 0}

    All but ``audio``, which is relative to the file, may be left out. Of a dialogue with a speaker
    a channel, both channels are a recording, and one is the reply to the other.

    Raises:
        CorpusError: Nothing is there, the folder holds no audio, a row is wrong (the message
            names file and line), or two recordings have one id.
    """
    try:
        if path.is_dir():
            if (path / MANIFEST_NAME).is_file():
                return _open_manifest(path / MANIFEST_NAME)
            if next(path.glob("cuts.*.jsonl*"), None) is not None:
                from speechlm.data.cuts import read_shar

                return _index(read_shar(path), str(path))
            return _open_folder(path)
        if path.is_file():
            return _open_manifest(path)
    except PermissionError as error:
        raise CorpusError(f"{error.filename or path}: no permission to read it") from error
    raise CorpusError(
        f"{path}: no such corpus; expected a folder of audio, JSON lines or a lhotse CutSet"
    )


def _index(recordings: Iterator[Recording] | list[Recording], name: str) -> Corpus:
    found: dict[str, Recording] = {}
    for recording in recordings:
        other = found.setdefault(recording.id, recording)
        if other is not recording:
            raise CorpusError(
                f"{recording.source}: id {recording.id!r} is taken by {other.source}; "
                "expected ids that differ"
            )
    if not found:
        raise CorpusError(f"{name}: holds no recordings")
    return Corpus(list(found.values()))


def _open_folder(folder: Path) -> Corpus:
    from speechlm.audio import EXTENSIONS

    def refuse(error: OSError) -> None:
        raise CorpusError(
            f"{error.filename}: the folder cannot be read ({error.strerror}); "
            "make it readable, or move it out of the corpus"
        ) from error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            Path(parent, name)
            for name in sorted(names)
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".")
        ]
    if not paths:
        raise CorpusError(
            f"{folder}: no audio in it; expected files like {', '.join(sorted(EXTENSIONS))}"
        )
    return _index(
        (
            Recording(id=readable(path.relative_to(folder)), source=str(path), audio=path)
            for path in paths
        ),
        str(folder),
    )


def readable(path: Path) -> str:
    """A file name as text, also where its bytes are not UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _open_manifest(path: Path) -> Corpus:
    """JSON lines, ours or lhotse's."""
    from speechlm.data.jsonlines import read_recordings, read_rows

    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise CorpusError(f"{path}: holds no recordings")
    _, row = first
    if "audio" not in row and row.keys() & {"recording", "tracks", "type"}:
        from speechlm.data.cuts import read_manifest

        return _index(read_manifest(path, chain([first], rows)), str(path))
    return _index(read_recordings(path, chain([first], rows)), str(path))
