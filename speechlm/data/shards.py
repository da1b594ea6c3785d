"""How units lie on disk: Parquet shards beside one ``_manifest.json``.

Every shard carries in its Parquet metadata whose units it holds (:class:`UnitFormat`) and which
recordings of its share could not be used. The manifest lists the shards that make the whole, so
a missing one is noticed; a file that it does not list is not part of the store. pandas, DuckDB,
pyarrow and ``datasets`` open the folder as it is: a row is a recording, ``codes`` its units
[K, F] row after row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from speechlm.data.corpus import Word
from speechlm.errors import ConfigError, CorpusError
from speechlm.files import read_json, write_aside, write_json
from speechlm.protocols import AudioTokenizer
from speechlm.units import Units

LAYOUT_VERSION = 1
"""Raised when the columns or their meaning change."""
MANIFEST_NAME = "_manifest.json"
"""The underscore makes Parquet readers that are given the folder pass over it."""
_METADATA_KEY = b"speechlm"

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("codes", pa.list_(pa.int32()), nullable=False),
        pa.field("num_codebooks", pa.int32(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("durations", pa.list_(pa.int32())),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("split", pa.string()),
        pa.field("reply", pa.string()),
        pa.field(
            "words",
            pa.list_(
                pa.struct(
                    [("word", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())]
                )
            ),
        ),
        pa.field("source", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitFormat:
    """Whose units a store holds; the same in every shard."""

    fingerprint: str
    """The tokenizer's."""
    frame_rate: float
    """Hz."""
    vocab_size: int
    """Units a codebook; the most, where they differ."""
    num_codebooks: int
    codebook_sizes: tuple[int, ...] = ()
    """Units of each codebook, where they differ; empty: ``vocab_size`` each."""
    variable_rate: bool = False
    """Units are not one a frame: see :attr:`~speechlm.units.Units.variable_rate`."""

    @classmethod
    def of(cls, tokenizer: AudioTokenizer) -> Self:
        """What a tokenizer's store holds."""
        sizes = tuple(getattr(tokenizer, "codebook_sizes", ()))
        return cls(
            fingerprint=tokenizer.fingerprint,
            frame_rate=float(tokenizer.frame_rate),
            vocab_size=tokenizer.vocab_size,
            num_codebooks=tokenizer.num_codebooks,
            codebook_sizes=sizes if len(set(sizes)) > 1 else (),
            variable_rate=getattr(tokenizer, "variable_rate", False),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each codebook."""
        return self.codebook_sizes or (self.vocab_size,) * self.num_codebooks


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredUnits:
    """One recording of a unit store."""

    id: str
    units: Units
    text: str | None = None
    speaker: str | None = None
    split: str | None = None
    reply: str | None = None
    """Id of the recording that answers this one."""
    words: tuple[Word, ...] | None = None
    duration_s: float
    """Length of the waveform, s."""
    source: str = ""
    """Where the waveform came from, as tokenizing recognises it on a rerun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What makes a store whole."""

    format: UnitFormat
    num_recordings: int
    """Recordings of the corpus, the unusable ones included."""
    shards: tuple[str, ...]
    """File names, in the order of the corpus."""
    skipped: Mapping[str, str]
    """Id of each recording that could not be used, and the reason."""

    def write(self, folder: Path) -> None:
        # Two machines that share a folder may both write it; both write the same plan.
        write_json(
            folder / MANIFEST_NAME,
            {
                "kind": "speechlm-units",
                "layout_version": LAYOUT_VERSION,
                **asdict(self.format),
                "num_recordings": self.num_recordings,
                "shards": list(self.shards),
                "skipped": dict(self.skipped),
            },
        )

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read a store's manifest.

        Raises:
            CorpusError: No such folder, not a unit store, or one of another layout.
        """
        path = folder / MANIFEST_NAME
        if not folder.is_dir():
            raise CorpusError(f"{folder}: no such unit store; 'speechlm tokenize' makes one")
        try:
            saved = read_json(path)
        except FileNotFoundError:
            raise CorpusError(
                f"{folder} is not a unit store: it holds no {MANIFEST_NAME}; "
                "'speechlm tokenize' makes one"
            ) from None
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path} cannot be read: {error}") from error
        if not isinstance(saved, dict) or saved.get("kind") != "speechlm-units":
            raise CorpusError(
                f"{folder} is not a unit store: its {MANIFEST_NAME} is of something else"
            )
        if saved["layout_version"] != LAYOUT_VERSION:
            raise CorpusError(
                f"{folder} has layout {saved['layout_version']}, this speechlm reads "
                f"{LAYOUT_VERSION}; tokenize the corpus again, or install a matching speechlm"
            )
        return Manifest(
            format=_unit_format(saved),
            num_recordings=saved["num_recordings"],
            shards=tuple(saved["shards"]),
            skipped=saved["skipped"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFooter:
    """What is known of a shard before its rows are read."""

    format: UnitFormat
    num_rows: int
    skipped: Mapping[str, str]


def write_shard(
    path: Path, unit_format: UnitFormat, rows: Sequence[StoredUnits], skipped: Mapping[str, str]
) -> None:
    """Write rows as one Parquet file, whole or not at all; equal rows give equal bytes."""
    metadata = {
        "layout_version": LAYOUT_VERSION,
        **asdict(unit_format),
        "skipped": dict(skipped),
    }
    columns: dict[str, Any] = {
        "id": [row.id for row in rows],
        "codes": _list_array([row.units.codes.reshape(-1).numpy() for row in rows]),
        "num_codebooks": [row.units.num_codebooks for row in rows],
        "num_frames": [row.units.num_frames for row in rows],
        "durations": [
            None if row.units.durations is None else row.units.durations.numpy() for row in rows
        ],
        "duration_s": [row.duration_s for row in rows],
        "text": [row.text for row in rows],
        "speaker": [row.speaker for row in rows],
        "split": [row.split for row in rows],
        "reply": [row.reply for row in rows],
        "words": [
            None if row.words is None else [word._asdict() for word in row.words] for row in rows
        ],
        "source": [row.source for row in rows],
    }
    schema = SCHEMA.with_metadata({_METADATA_KEY: json.dumps(metadata)})
    table = pa.Table.from_pydict(columns, schema=schema)
    with write_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def read_footer(path: Path) -> ShardFooter:
    """Read whose units a shard holds.

    Raises:
        CorpusError: Not a shard that speechlm wrote whole.
    """
    try:
        found = pq.read_metadata(path)
        metadata = json.loads((found.metadata or {})[_METADATA_KEY])
        return ShardFooter(
            format=_unit_format(metadata), num_rows=found.num_rows, skipped=metadata["skipped"]
        )
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"{path} is not a shard of units that can be read ({reason}); "
            "delete it and run 'speechlm tokenize' again"
        ) from error


class Shard:
    """The rows of one Parquet file, in memory."""

    def __init__(self, path: Path) -> None:
        table = pq.read_table(path).combine_chunks()
        self._format = read_footer(path).format
        self._lists = {
            name: (column.offsets.to_numpy(), column.values.to_numpy())
            for name in ("codes", "durations")
            for column in [_one_chunk(table[name])]
        }
        self._plain = table.drop_columns(["codes", "durations"]).to_pylist()
        self._collapsed = table["durations"].is_valid().to_pylist()

    def __len__(self) -> int:
        return len(self._plain)

    def row(self, index: int) -> StoredUnits:
        plain = self._plain[index]
        words = plain["words"]
        codes = self._list("codes", index).reshape(plain["num_codebooks"], -1)
        return StoredUnits(
            id=plain["id"],
            units=Units(
                codes=codes,
                frame_rate=self._format.frame_rate,
                fingerprint=self._format.fingerprint,
                durations=self._list("durations", index) if self._collapsed[index] else None,
                variable_rate=self._format.variable_rate,
            ),
            text=plain["text"],
            speaker=plain["speaker"],
            split=plain["split"],
            reply=plain["reply"],
            words=None if words is None else tuple(Word(**word) for word in words),
            duration_s=plain["duration_s"],
            source=plain["source"],
        )

    def _list(self, name: str, index: int) -> torch.Tensor:
        offsets, values = self._lists[name]
        return torch.from_numpy(values[offsets[index] : offsets[index + 1]].astype(np.int64))


def _unit_format(saved: Mapping[str, Any]) -> UnitFormat:
    return UnitFormat(
        fingerprint=saved["fingerprint"],
        frame_rate=saved["frame_rate"],
        vocab_size=saved["vocab_size"],
        num_codebooks=saved["num_codebooks"],
        codebook_sizes=tuple(saved.get("codebook_sizes", ())),
        variable_rate=saved.get("variable_rate", False),
    )


def _list_array(arrays: Sequence[np.ndarray[Any, Any]]) -> pa.ListArray:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ConfigError(
            f"{len(arrays)} recordings with {offsets[-1]} units are too many for one shard; "
            "set a lower tokenize.shard_size"
        )
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), values.astype(np.int32))


def _one_chunk(column: pa.ChunkedArray) -> pa.ListArray:
    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
