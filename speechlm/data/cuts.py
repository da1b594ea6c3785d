"""Reading lhotse's CutSets: a manifest of cuts, or a Shar folder with the audio in tar files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlm.data.corpus import Recording, Word
from speechlm.data.jsonlines import read_rows
from speechlm.errors import AudioError, CorpusError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMember:
    """Where a recording's bytes are in a Shar folder."""

    path: Path
    """The tar file."""
    offset: int
    size: int
    """Bytes."""

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def read_manifest(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Recording]:
    """The recordings of the rows of ``path``, a manifest of cuts.

    A relative path of a recording is taken from the working directory, as lhotse does, or
    from the manifest's folder where there is no such file.

    Raises:
        CorpusError: A row is not a cut; the message names file and line.
    """
    base: Path | None = None
    for number, row in rows:
        cut = _cut(row, f"{path}:{number}")
        file = _plain_file(cut)
        if file is None:
            yield _recording(cut, source=f"cut {cut.id!r} of {path}", cut=cut)
            continue
        if not file.is_absolute():
            if base is None:
                base = Path() if file.exists() else path.parent
            file = base / file
        whole = cut.start == 0 and abs(cut.duration - cut.recording.duration) < 1e-6
        yield _recording(
            cut,
            source=f"{file} (cut {cut.id!r} of {path})",
            audio=file,
            start_s=float(cut.start),
            duration_s=None if whole else float(cut.duration),
        )


def read_shar(folder: Path) -> Iterator[Recording]:
    """The recordings of a Shar folder: its cuts are read now, its audio when it is loaded.

    Raises:
        CorpusError: A shard's audio is missing, damaged, or not that of its cuts.
    """
    for cuts in sorted(folder.glob("cuts.*.jsonl*")):
        shard = cuts.name.split(".")[1]
        tar = folder / f"recording.{shard}.tar"
        if not tar.is_file():
            raise CorpusError(f"{tar}: no such file; expected the recordings of {cuts}")
        members = _members(tar)
        for number, row in read_rows(cuts):
            cut = _cut(row, f"{cuts}:{number}")
            name, member = next(members, ("nothing", None))
            if member is None or name != cut.id:
                raise CorpusError(
                    f"{tar}: expected the recording of cut {cut.id!r} ({cuts}:{number}), "
                    f"got {name!r}; write the folder again"
                )
            yield _recording(cut, source=f"cut {cut.id!r} of {tar}", cut=cut, member=member)


def load_cut(cut: Any, member: ShardMember | None, sample_rate: int, *, name: str) -> Tensor:
    """The audio of a cut, one channel, float32 [T] at ``sample_rate`` Hz.

    Raises:
        AudioError: lhotse cannot read it, or see :func:`speechlm.audio.prepare`.
    """
    import torch
    from lhotse import AudioSource
    from lhotse.utils import fastcopy

    from speechlm.audio import prepare

    try:
        if member is not None:
            channels = cut.recording.channel_ids
            held = AudioSource(type="memory", channels=channels, source=member.read())
            cut = fastcopy(cut, recording=fastcopy(cut.recording, sources=[held]))
        samples = cut.load_audio()
    except Exception as error:  # lhotse tries several readers, each with errors of its own
        reason = " ".join(str(error).split())[:200]
        raise AudioError(f"{name}: lhotse cannot read it ({reason})") from error
    if samples is None:
        raise AudioError(f"{name}: the cut has no recording")
    return prepare(torch.from_numpy(samples), int(cut.sampling_rate), sample_rate, name=name)


def _cut(row: Any, where: str) -> Any:
    from lhotse.cut import Cut, PaddingCut
    from lhotse.serialization import deserialize_item

    try:
        cut = deserialize_item(row)
    except Exception as error:  # a wrong row fails anywhere in lhotse
        raise CorpusError(f"{where}: lhotse cannot read this cut ({error!r})") from error
    if not isinstance(cut, Cut) or isinstance(cut, PaddingCut):
        raise CorpusError(f"{where}: expected a cut with a recording, got {type(cut).__name__}")
    return cut


def _plain_file(cut: Any) -> Path | None:
    """The file of a cut that is nothing but a stretch of all its channels."""
    recording = getattr(cut, "recording", None)
    if recording is None or recording.transforms or len(recording.sources) != 1:
        return None
    source = recording.sources[0]
    channels = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    if source.type != "file" or channels != list(recording.channel_ids):
        return None
    return Path(source.source)


def _recording(lhotse_cut: Any, **where: Any) -> Recording:
    supervisions = sorted(lhotse_cut.supervisions, key=lambda supervision: supervision.start)
    texts = [s.text for s in supervisions if s.text]
    speakers = {s.speaker for s in supervisions if s.speaker}

    def aligned(*kinds: str) -> tuple[Word, ...] | None:
        items = [i for s in supervisions for k in kinds for i in (s.alignment or {}).get(k, ())]
        return tuple(Word(i.symbol, float(i.start), float(i.end)) for i in items) or None

    # A mixed cut has custom fields in its tracks only.
    custom = getattr(lhotse_cut, "custom", None) or {}
    return Recording(
        id=str(lhotse_cut.id),
        text=" ".join(texts) or None,
        speaker=speakers.pop() if len(speakers) == 1 else None,
        split=custom.get("split"),
        reply=custom.get("reply"),
        words=aligned("word"),
        phones=aligned("phone", "phones", "phoneme"),
        **where,
    )


def _members(tar: Path) -> Iterator[tuple[str, ShardMember]]:
    """The audio in a Shar tar file, in order: each is followed by a JSON of the same name."""
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                name = member.name
                if not name.endswith((".json", ".nodata", ".nometa")):
                    stem = name.rpartition(".")[0]
                    yield (
                        stem,
                        ShardMember(path=tar, offset=member.offset_data, size=member.size),
                    )
    except tarfile.TarError as error:
        raise CorpusError(f"{tar}: not a whole tar file ({error}); copy it again") from error
