"""Reading a unit store: by id, by split, or all at once as arrays for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from speechlm.data.shards import (
    MANIFEST_NAME,
    Manifest,
    Shard,
    StoredUnits,
    UnitFormat,
    read_footer,
    write_shard,
)
from speechlm.errors import CorpusError, FingerprintError

__all__ = ["StoredUnits", "UnitArrays", "UnitRows", "UnitStore", "write_store"]

_INDEX_COLUMNS = ["id", "split", "num_frames"]
_SHARDS_IN_MEMORY = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UnitArrays:
    """Units of many recordings, end to end."""

    ids: list[str]
    """The N recordings."""
    codes: Tensor
    """Each recording's units [K, F], row after row: int32 [sum of K * F]."""
    offsets: Tensor
    """Where each recording starts in ``codes``, and the end: int64 [N + 1]."""
    num_codebooks: int

    def __len__(self) -> int:
        return len(self.ids)

    def codes_of(self, index: int) -> Tensor:
        """One recording's units, int64 [K, F]."""
        start, end = self.offsets[index : index + 2].tolist()
        return self.codes[start:end].reshape(self.num_codebooks, -1).long()


class UnitStore:
    """A folder of tokenized recordings, whole and of one tokenizer.

    Opening reads the small columns only; units are read, a shard at a time, when asked for.
    """

    def __init__(
        self,
        path: Path,
        unit_format: UnitFormat,
        shards: Sequence[Path],
        skipped: Mapping[str, str],
    ) -> None:
        self.path = path
        self.format = unit_format
        self.skipped = skipped
        """Id of each recording that could not be used, and the reason."""
        self._shards = list(shards)
        tables = [pq.read_table(shard, columns=_INDEX_COLUMNS) for shard in self._shards]
        self._index = pa.concat_tables(tables).combine_chunks()
        self._starts = np.cumsum([0, *(table.num_rows for table in tables)])
        self._positions: dict[str, int] = {}
        # One cache a store, so that it goes when the store does.
        self._shard = lru_cache(_SHARDS_IN_MEMORY)(lambda number: Shard(self._shards[number]))

    @classmethod
    def open(cls, path: Path | str) -> UnitStore:
        """Open a store and check that it is whole.

        Raises:
            CorpusError: Missing, not a unit store, incomplete, or without any recording.
            FingerprintError: It holds the units of more than one tokenizer.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        missing = [name for name in manifest.shards if not (path / name).is_file()]
        if missing:
            raise CorpusError(
                f"{path} is incomplete: {len(missing)} of {len(manifest.shards)} shards are "
                f"missing ({_numbers(missing, manifest.shards)}); run 'speechlm tokenize' again "
                "to finish it"
            )
        skipped: dict[str, str] = {}
        present = sorted(file.name for file in path.glob("[!.]*.parquet"))
        for name in dict.fromkeys((*manifest.shards, *present)):
            footer = read_footer(path / name)
            if footer.format != manifest.format:
                raise FingerprintError(
                    part=f"unit store {path}",
                    expected=manifest.format.fingerprint,
                    got=f"{footer.format.fingerprint} in {name}",
                    remedy="move that file out of the folder, or tokenize into another one",
                )
            if name not in manifest.shards:
                raise CorpusError(
                    f"{path / name} is not listed in {MANIFEST_NAME}; move it out of the folder, "
                    "or run 'speechlm tokenize' again to finish the store"
                )
            skipped.update(footer.skipped)
        store = cls(path, manifest.format, [path / name for name in manifest.shards], skipped)
        if len(store) == 0:
            raise CorpusError(
                f"{path} holds no recording: all {len(skipped)} of the corpus were skipped; "
                f"{MANIFEST_NAME} says why"
            )
        return store

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made the units."""
        return self.format.fingerprint

    @property
    def frame_rate(self) -> float:
        """Unit frames a second, Hz."""
        return self.format.frame_rate

    @property
    def vocab_size(self) -> int:
        """Units a codebook."""
        return self.format.vocab_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Units of each codebook."""
        return self.format.sizes

    @property
    def num_codebooks(self) -> int:
        return self.format.num_codebooks

    def __len__(self) -> int:
        return int(self._index.num_rows)

    def __iter__(self) -> Iterator[StoredUnits]:
        return iter(self.rows())

    def __contains__(self, recording_id: object) -> bool:
        return recording_id in self._by_id()

    def __getitem__(self, recording_id: str) -> StoredUnits:
        """The recording of that id.

        Raises:
            KeyError: None has it; the message says so if it was skipped.
        """
        try:
            return self._row(self._by_id()[recording_id])
        except KeyError:
            reason = self.skipped.get(recording_id)
            skipped = f"; it was skipped: {reason}" if reason else ""
            raise KeyError(f"{self.path} holds no recording {recording_id!r}{skipped}") from None

    def rows(self, split: str | None = None) -> UnitRows:
        """The recordings of a split, or all of them, in the order of the corpus."""
        return UnitRows(self, self._select(split))

    def arrays(self, split: str | None = None) -> UnitArrays:
        """The units of a split, or all of them, column-wise: no Python object a recording."""
        wanted = self._select(split)
        codes, lengths = [], []
        for number, shard in enumerate(self._shards):
            start, end = self._starts[number : number + 2]
            here = wanted[(wanted >= start) & (wanted < end)] - start
            if len(here) == 0:
                continue
            column = pq.read_table(shard, columns=["codes"])["codes"]
            column = column if len(here) == len(column) else column.take(pa.array(here))
            lengths.append(pc.list_value_length(column).to_numpy())
            codes.append(pc.list_flatten(column).to_numpy())
        offsets = np.zeros(len(wanted) + 1, dtype=np.int64)
        np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]), out=offsets[1:])
        return UnitArrays(
            ids=self._index["id"].take(pa.array(wanted)).to_pylist(),
            codes=torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *codes])),
            offsets=torch.from_numpy(offsets),
            num_codebooks=self.num_codebooks,
        )

    def _select(self, split: str | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if split is None:
            return np.arange(len(self))
        mask = pc.fill_null(pc.equal(self._index["split"], split), False)
        return np.flatnonzero(mask.to_numpy(zero_copy_only=False))

    def _by_id(self) -> dict[str, int]:
        if not self._positions:
            ids = self._index["id"].to_pylist()
            self._positions = {recording_id: i for i, recording_id in enumerate(ids)}
        return self._positions

    def _row(self, position: int) -> StoredUnits:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._shard(number).row(position - int(self._starts[number]))


class UnitRows(Sequence[StoredUnits]):
    """Some recordings of a store, each read when it is asked for."""

    def __init__(
        self, store: UnitStore, positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> None:
        self._store = store
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> StoredUnits: ...
    @overload
    def __getitem__(self, index: slice) -> UnitRows: ...
    def __getitem__(self, index: int | slice) -> StoredUnits | UnitRows:
        if isinstance(index, slice):
            return UnitRows(self._store, self._positions[index])
        return self._store._row(int(self._positions[index]))


def write_store(
    path: Path, unit_format: UnitFormat, rows: Sequence[StoredUnits], *, shard_size: int = 512
) -> None:
    """Write units that are already in memory as a store of their own."""
    names = []
    for start in range(0, max(len(rows), 1), shard_size):
        names.append(f"units-{start // shard_size:05d}.parquet")
        write_shard(path / names[-1], unit_format, rows[start : start + shard_size], {})
    Manifest(format=unit_format, num_recordings=len(rows), shards=tuple(names), skipped={}).write(
        path
    )


def _numbers(missing: Sequence[str], shards: Sequence[str]) -> str:
    """Which shards are missing, a few of them, counted from 0 as in their names."""
    numbers = [str(shards.index(name)) for name in missing[:8]]
    return ", ".join([*numbers, "…"] if len(missing) > 8 else numbers)
