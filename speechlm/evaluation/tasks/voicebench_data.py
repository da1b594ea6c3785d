"""VoiceBench as it is published, and as answers to it are written down.

Two layouts, also mixed:

- the dataset's: ``SET/SPLIT-00000-of-00001.parquet``, sound in the column ``audio``;
- JSON lines whose name holds a set's, ``mmsu.jsonl`` or ``MODEL-mmsu-law-audio.jsonl``: rows with
  ``prompt``, and ``audio`` (a path beside the file) or ``response``, the answer.

Rows have what their set needs: ``reference`` (questions with an answer), ``id`` (tasks of
BIG-bench hard), ``instruction_id_list`` and ``kwargs`` (instructions).

Source:
    Chen et al. 2024, arXiv:2410.17196.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from speechlm.errors import CorpusError
from speechlm.evaluation.tasks.spoken_replies import Question, Sound

Kind = Literal["open", "qa", "choice", "reasoning", "instructions", "harm"]

SETS: Mapping[str, Kind] = {
    "alpacaeval_full": "open",
    "alpacaeval": "open",
    "commoneval": "open",
    "wildvoice": "open",
    "sd-qa": "qa",
    "openbookqa": "choice",
    "mmsu": "choice",
    "bbh": "reasoning",
    "ifeval": "instructions",
    "advbench": "harm",
}
"""How each set is graded. A longer name comes before one that it begins with."""
NEEDS: Mapping[Kind, tuple[str, ...]] = {
    "open": (),
    "qa": ("reference",),
    "choice": ("reference",),
    "reasoning": ("reference", "id"),
    "instructions": ("instruction_id_list", "kwargs"),
    "harm": (),
}


def read_voicebench(folder: Path) -> dict[str, list[Question]]:
    """The questions of every set in a folder.

    Raises:
        CorpusError: There is none, a row lacks what its set needs, or an id comes twice.
    """
    found: dict[str, list[Question]] = {}
    for path in sorted([*folder.rglob("*.parquet"), *folder.rglob("*.jsonl")]):
        name = _set_of(path.relative_to(folder))
        if name is None:
            continue
        rows = _parquet(path) if path.suffix == ".parquet" else _lines(path)
        split = _split(path, name)
        asked = found.setdefault(name, [])
        before = sum(question.row["split"] == split for question in asked)
        for index, (sound, row) in enumerate(rows):
            asked.append(_question(path, name, split, before + index, sound, row))
    if not found:
        raise CorpusError(
            f"{folder}: expected VoiceBench, SET/*.parquet or *SET*.jsonl, of the sets "
            f"{', '.join(SETS)}"
        )
    for name, asked in found.items():
        if not asked:
            raise CorpusError(f"{folder}: no rows of {name}")
    return {name: found[name] for name in SETS if name in found}


def _set_of(path: Path) -> str | None:
    parts = [part.lower() for part in (*path.parts[:-1], path.stem)]
    return next((name for name in SETS if any(name in part for part in parts)), None)


def _split(path: Path, name: str) -> str:
    """``usa`` of ``sd-qa/usa-00000-of-00001``, of ``MODEL-sd-qa-usa-audio``; ``test`` elsewhere."""
    if path.suffix == ".parquet":
        return path.stem.rpartition("-of-")[0].rpartition("-")[0] or path.stem
    after = path.stem.lower().partition(name)[2].strip("-").removesuffix("audio").strip("-")
    return after or "test"


def _lines(path: Path) -> Iterator[tuple[Sound | None, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            audio = row.pop("audio", None)
        except (ValueError, AttributeError) as error:
            raise CorpusError(f"{path}:{number}: not a JSON object: {error}") from error
        yield (Sound(path=path.parent / audio) if isinstance(audio, str) else None), row


def _parquet(path: Path) -> Iterator[tuple[Sound | None, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        rows = pq.read_table(path, columns=[name for name in names if name != "audio"]).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path}: not a parquet file that can be read: {error}") from error
    for index, row in enumerate(rows):
        yield (Sound(path=path, row=index) if "audio" in names else None), row


def _question(
    path: Path, name: str, split: str, index: int, sound: Sound | None, row: dict[str, Any]
) -> Question:
    missing = [key for key in ("prompt", *NEEDS[SETS[name]]) if row.get(key) is None]
    if sound is None and row.get("response") is None:
        missing.append("audio or response")
    if missing:
        raise CorpusError(f"{path}: row {index} of {name} lacks {', '.join(missing)}")
    return Question(
        id=f"{name}/{split}-{index:05d}",
        sound=sound,
        prompt=str(row["prompt"]),
        row={**row, "set": name, "split": split},
    )
