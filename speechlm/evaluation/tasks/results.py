"""What a measurement says, in full: one JSON line each, a failure no less than a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from speechlm.errors import CheckpointError
from speechlm.files import write_aside

RESULTS_NAME = "results.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What was measured, as every row of a run says it."""

    model: str
    """Fingerprint of the language model, or of the part that was measured."""
    tokenizer: str = ""
    rate_hz: float | None = None
    """Frames of units a second."""
    dedup: bool | None = None
    """Whether repeats of a unit were merged before the language model read them."""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One figure, or why there is none."""

    metric: str
    variant: str
    """Which of the definitions in use; never empty where there are several."""
    subset: str = ""
    """Part of the data, as ``type=anaphora``; empty for all."""
    value: float | None = None
    n: int = 0
    """Independent items behind the figure."""
    ci95: tuple[float, float] | None = None
    asr: str | None = None
    judge: str | None = None
    seed: int = 0
    data_sha256: str = ""
    error: str = ""
    """Why there is no figure."""
    subject: Subject
    wall_s: float = 0.0

    @property
    def name(self) -> str:
        return "/".join(part for part in (self.metric, self.subset, self.variant) if part)

    def to_json(self) -> str:
        """One line; numbers that JSON does not have become null."""
        row = asdict(self)
        row = {**row.pop("subject"), **row}
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[key] = None
        return json.dumps(row, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Result:
        row = json.loads(line)
        subject = {each.name: row.pop(each.name) for each in fields(Subject)}
        if row["ci95"] is not None:
            row["ci95"] = tuple(row["ci95"])
        return cls(subject=Subject(**subject), **row)


def read_results(path: Path) -> list[Result]:
    """The rows of a run.

    Raises:
        CheckpointError: A line is not one.
    """
    if path.is_dir():
        path = path / RESULTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: expected what 'speechlm evaluate' wrote")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(Result.from_json(line))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}:{number}: not a result: {error}") from error
    return rows


def write_results(folder: Path, rows: Iterable[Result]) -> Path:
    """Write all rows, whole or not at all."""
    path = folder / RESULTS_NAME
    with write_aside(path) as aside:
        aside.write_text("".join(f"{row.to_json()}\n" for row in rows), encoding="utf-8")
    return path


def table(rows: Sequence[Result]) -> list[str]:
    """Lines to read: name, value, 95 % interval, number of items."""
    width = max([len("metric"), *(len(row.name) for row in rows)])
    lines = [f"{'metric':<{width}}    value        95 % interval      n"]
    for row in rows:
        if row.value is None:
            lines.append(f"{row.name:<{width}}  no figure: {row.error}")
            continue
        low, high = row.ci95 or (math.nan, math.nan)
        lines.append(
            f"{row.name:<{width}}  {row.value:7.2f}  {low:7.2f} to {high:7.2f}  {row.n:5d}"
        )
    return lines
