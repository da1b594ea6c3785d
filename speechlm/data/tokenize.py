"""``speechlm tokenize``: a corpus to a unit store, on every core, killed and resumed at will.

The corpus is cut into shards by rule: shard i holds recordings ``[i * size, (i + 1) * size)``.
A shard's file name carries a hash of what goes into it, so a file of that name *is* that shard,
and a rerun, or another machine with ``--shard``, only makes the files that are not there. Where
the corpus changed, or some recordings could not be read before, the units of all others are
carried over. A recording is known by its id, its source and the size of its file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq

from speechlm.data.corpus import Recording, open_corpus
from speechlm.data.encoding import Encoded
from speechlm.data.pool import encode_chunks
from speechlm.data.shards import (
    LAYOUT_VERSION,
    MANIFEST_NAME,
    Manifest,
    Shard,
    StoredUnits,
    UnitFormat,
    read_footer,
    write_shard,
)
from speechlm.errors import ConfigError, CorpusError, FingerprintError, PartialFailure
from speechlm.files import remove_abandoned
from speechlm.plugins import load_tokenizer
from speechlm.progress import progress, say

CHUNK = 32
"""Recordings that a process takes at a time."""
REASONS_SHOWN = 20
"""Skipped recordings that are printed; the manifest lists all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeSummary:
    """What ``tokenize_corpus`` did."""

    done: int
    """Recordings tokenized now."""
    reused: int
    """Recordings found tokenized."""
    skipped: Mapping[str, str]
    """Id of each recording that could not be used, and the reason."""
    seconds: float
    """Wall time, s."""
    audio_seconds: float
    """Length of the recordings tokenized now, s."""


def tokenize_corpus(
    *,
    corpus_path: Path,
    tokenizer_path: Path,
    store_path: Path,
    num_workers: int = 0,
    shard_size: int = 512,
    keep_going: bool = False,
    shard: tuple[int, int] | None = None,
) -> TokenizeSummary:
    """Tokenize a corpus into the unit store ``store_path``, making only what is not there.

    With more than one process, a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        corpus_path: What :func:`speechlm.data.corpus.open_corpus` opens.
        tokenizer_path: A fitted tokenizer's folder, or a bundle's.
        store_path: Folder of the store; made when missing.
        num_workers: Processes; 0 for one a core, if there is work for them; 1 for this one alone.
        shard_size: Recordings a Parquet file.
        keep_going: Do not fail when some recordings could not be used.
        shard: ``(index, count)``, 1 <= index <= count: make only this share of the files, as
            one of ``count`` machines that write into the same folder.

    Raises:
        CorpusError: No recording can be used, or the store holds another corpus.
        FingerprintError: The store holds the units of another tokenizer.
        PartialFailure: Some recordings were skipped, a process was killed, or the disk is
            full. What is finished is kept, and a rerun takes it from there.
    """
    started = time.monotonic()
    index, count = shard or (1, 1)
    if not 1 <= index <= count:
        raise ConfigError(
            f"expected a share from 1/{count} to {count}/{count}, got {index}/{count}"
        )
    recordings = list(open_corpus(corpus_path))
    if not recordings:
        raise CorpusError(f"{corpus_path} holds no recording")
    tokenizer = load_tokenizer(tokenizer_path)
    unit_format = UnitFormat.of(tokenizer)
    plan = _plan(recordings, corpus_path, unit_format, shard_size)
    with _explain_full_disk(store_path):
        store = _Folder(store_path, unit_format, plan, corpus_path)
        open_shards = [each for each in plan[index - 1 :: count] if store.wants(each)]
        for each in open_shards:
            store.carry_over(each)
            if not each.missing():
                store.write(each)
        chunks = _chunks(filter(store.wants, open_shards))
        num_missing = sum(len(recs) for _, recs in chunks)
        audio_seconds, skipped = 0.0, {}
        with (
            progress("tokenizing", num_missing, "recordings") as advance,
            # Closed at once when a write fails, not when the error is forgotten.
            closing(encode_chunks(chunks, tokenizer, tokenizer_path, num_workers)) as encoded,
        ):
            for each, outcomes in encoded:
                each.add(outcomes)
                audio_seconds += sum(outcome.duration_s for outcome in outcomes)
                advance(len(outcomes))
                if not each.missing():
                    skipped.update(each.skipped)
                    store.write(each)
        store.close()
    seconds = time.monotonic() - started
    mine = sum(len(each.recordings) for each in plan[index - 1 :: count])
    done = num_missing - len(skipped)
    summary = TokenizeSummary(
        done=done,
        reused=mine - num_missing,
        skipped=skipped,
        seconds=seconds,
        audio_seconds=audio_seconds,
    )
    _report(summary, store_path, keep_going)
    return summary


def _report(summary: TokenizeSummary, store_path: Path, keep_going: bool) -> None:
    speed = summary.audio_seconds / max(summary.seconds, 1e-9)
    say(
        f"tokenized {summary.done} recordings, {summary.audio_seconds:.0f} s of audio, in "
        f"{summary.seconds:.1f} s ({speed:.0f} x real time); {summary.reused} were there already"
    )
    if not summary.skipped:
        return
    for name, reason in list(summary.skipped.items())[:REASONS_SHOWN]:
        say(f"skipped {name}: {reason}")
    if len(summary.skipped) > REASONS_SHOWN:
        say(f"skipped {len(summary.skipped) - REASONS_SHOWN} more: see {MANIFEST_NAME}")
    total = summary.done + summary.reused + len(summary.skipped)
    if summary.done + summary.reused == 0:
        name, reason = next(iter(summary.skipped.items()))
        raise CorpusError(f"none of the {total} recordings can be used; the first: {reason}")
    if not keep_going:
        raise PartialFailure(
            f"{len(summary.skipped)} of {total} recordings were skipped, "
            f"{store_path / MANIFEST_NAME} says why; mend or remove them and run this again, "
            "or go on without them: --keep-going"
        )


@dataclass(kw_only=True, slots=True)
class _PlannedShard:
    """One file of the store and how far it is."""

    name: str
    recordings: Sequence[Recording]
    sources: Mapping[str, str]
    """What each recording is known by, beside its id."""
    rows: dict[str, StoredUnits] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[Recording]:
        known = self.rows.keys() | self.skipped.keys()
        return [rec for rec in self.recordings if rec.id not in known]

    def add(self, outcomes: Iterable[Encoded]) -> None:
        by_id = {rec.id: rec for rec in self.recordings}
        for outcome in outcomes:
            if outcome.units is None:
                self.skipped[outcome.id] = outcome.reason
                continue
            rec = by_id[outcome.id]
            self.rows[rec.id] = StoredUnits(
                id=rec.id,
                units=outcome.units,
                text=rec.text,
                speaker=rec.speaker,
                split=rec.split,
                reply=rec.reply,
                words=rec.words,
                duration_s=outcome.duration_s,
                source=self.sources[rec.id],
            )


def _plan(
    recordings: Sequence[Recording], corpus_path: Path, unit_format: UnitFormat, shard_size: int
) -> list[_PlannedShard]:
    """Cut the corpus into shards, each named by its place and a hash of all that it holds."""
    plan = []
    for start in range(0, len(recordings), shard_size):
        share = recordings[start : start + shard_size]
        sources = {rec.id: _source(rec, corpus_path) for rec in share}
        content = [
            [rec.id, sources[rec.id], rec.text, rec.speaker, rec.split, rec.reply, rec.words]
            for rec in share
        ]
        identity = json.dumps([LAYOUT_VERSION, asdict(unit_format), content])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        plan.append(
            _PlannedShard(
                name=f"units-{start // shard_size:05d}-{digest}.parquet",
                recordings=share,
                sources=sources,
            )
        )
    return plan


def _source(recording: Recording, corpus_path: Path) -> str:
    """Tell where a waveform comes from: the same wherever the corpus lies."""
    if recording.cut is not None:
        cut = json.dumps(recording.cut.to_dict(), sort_keys=True, default=str)
        return f"{recording.source} {hashlib.sha256(cut.encode()).hexdigest()[:16]}"
    assert recording.audio is not None
    try:
        size = recording.audio.stat().st_size
    except OSError:
        size = 0  # loading it says what is wrong
    root = corpus_path if corpus_path.is_dir() else corpus_path.parent
    name = str(recording.audio).removeprefix(f"{root}{os.sep}")
    end = "" if recording.duration_s is None else f"+{recording.duration_s}"
    part = f" from {recording.start_s}{end} s" if recording.start_s or end else ""
    part += "" if recording.channel is None else f" channel {recording.channel}"
    # A file name need not be valid text, a Parquet string must be.
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return f"{name}{part} ({size} bytes)"


class _Folder:
    """The store while it is being filled."""

    def __init__(
        self,
        path: Path,
        unit_format: UnitFormat,
        plan: Sequence[_PlannedShard],
        corpus_path: Path,
    ) -> None:
        self.path = path
        self._format = unit_format
        self._plan = plan
        path.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        self._check_owner()
        self._whole: set[str] = set()
        self._found: dict[str, tuple[str, Path, int]] = {}
        """Source, file and row of each recording in a file that is not whole or not planned."""
        planned = {each.name for each in plan}
        for file in sorted(path.glob("[!.]*.parquet")):
            footer = read_footer(file)
            if footer.format != unit_format:
                raise self._other_tokenizer(footer.format)
            if file.name in planned and not footer.skipped:
                self._whole.add(file.name)
                continue
            columns = pq.read_table(file, columns=["id", "source"]).to_pydict()
            for row, (name, source) in enumerate(zip(*columns.values(), strict=True)):
                self._found[name] = source, file, row
        ids = {rec.id for each in plan for rec in each.recordings}
        if self._found and not self._whole and ids.isdisjoint(self._found):
            raise CorpusError(
                f"{path} holds the units of another corpus ({len(self._found)} recordings, "
                f"{next(iter(self._found))!r} first) and none of {corpus_path} ({len(ids)}, "
                f"{plan[0].recordings[0].id!r} first); give another store folder, or delete it"
            )
        self._shard = lru_cache(4)(Shard)
        self._write_manifest()

    def wants(self, each: _PlannedShard) -> bool:
        return each.name not in self._whole

    def carry_over(self, each: _PlannedShard) -> None:
        """Take the units that a file of an earlier run holds."""
        outcomes = []
        for rec in each.recordings:
            source, file, row = self._found.get(rec.id, ("", Path(), 0))
            if rec.id in self._found and source == each.sources[rec.id]:
                old = self._shard(file).row(row)
                outcomes.append(Encoded(id=rec.id, units=old.units, duration_s=old.duration_s))
        each.add(outcomes)

    def write(self, each: _PlannedShard) -> None:
        rows = [each.rows[rec.id] for rec in each.recordings if rec.id in each.rows]
        skipped = {
            rec.id: each.skipped[rec.id] for rec in each.recordings if rec.id in each.skipped
        }
        write_shard(self.path / each.name, self._format, rows, skipped)
        self._whole.add(each.name)
        each.rows.clear()

    def close(self) -> None:
        """List what was skipped; once every shard is there, remove those of older plans."""
        self._write_manifest()
        planned = {each.name for each in self._plan}
        present = {file.name for file in self.path.glob("[!.]*.parquet")}
        if planned <= present:
            for name in present - planned:
                (self.path / name).unlink(missing_ok=True)

    def _write_manifest(self) -> None:
        files = [self.path / each.name for each in self._plan]
        skipped: dict[str, str] = {}
        for file in files:
            if file.is_file():
                skipped.update(read_footer(file).skipped)
        Manifest(
            format=self._format,
            num_recordings=sum(len(each.recordings) for each in self._plan),
            shards=tuple(file.name for file in files),
            skipped=skipped,
        ).write(self.path)

    def _check_owner(self) -> None:
        if (self.path / MANIFEST_NAME).exists():
            manifest = Manifest.read(self.path)
            if manifest.format != self._format:
                raise self._other_tokenizer(manifest.format)
            return
        foreign = next((entry for entry in self.path.iterdir() if entry.name[0] != "."), None)
        if foreign is not None:
            raise CorpusError(
                f"{self.path} is not a unit store but holds {foreign.name!r}; "
                "give a new or empty folder for the store"
            )

    def _other_tokenizer(self, found: UnitFormat) -> FingerprintError:
        return FingerprintError(
            part=f"unit store {self.path}",
            expected=found.fingerprint,
            got=self._format.fingerprint,
            remedy="tokenize into another folder, or delete this one",
        )


def _chunks(
    open_shards: Iterable[_PlannedShard],
) -> list[tuple[_PlannedShard, Sequence[Recording]]]:
    """Cut what is missing into pieces that a process takes at a time, each of one shard."""
    missing = [(each, each.missing()) for each in open_shards]
    return [
        (each, recordings[start : start + CHUNK])
        for each, recordings in missing
        for start in range(0, len(recordings), CHUNK)
    ]


@contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise PartialFailure(
            f"{path}: the disk is full ({os.strerror(error.errno)}); whole shards are kept: "
            "free some space and run this again"
        ) from error
