"""Whether one model does better than another on the same pairs.

Both have met the same items, so items are compared one by one: what is hard for all does not
blur the difference. The interval is a bootstrap over items; the p-value says how often a
difference as large comes about where a draw decides which item is whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechlm.errors import CheckpointError, InputError
from speechlm.evaluation.intervals import bootstrap_interval
from speechlm.evaluation.tasks.items import Item, numbers
from speechlm.evaluation.tasks.journal import SCORES_FOLDER, read_items
from speechlm.evaluation.tasks.results import Result, read_results

NUM_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What ``other`` has more than ``first``, in the metric's own unit."""

    name: str
    first: Path
    other: Path
    value: float
    ci95: tuple[float, float]
    p: float
    n: int


def compare(folders: Sequence[Path], seed: int = 1) -> list[Difference]:
    """Compare the first folder with each of the others, by every metric they share.

    Raises:
        CheckpointError: A folder does not hold what an evaluation wrote.
        InputError: Nothing was measured on the same data.
    """
    rows = {folder: _totals(read_results(folder)) for folder in folders}
    first = folders[0]
    found = []
    for other in folders[1:]:
        for name, mine in rows[first].items():
            theirs = rows[other].get(name)
            if theirs is None or theirs.data_sha256 != mine.data_sha256:
                continue
            found.append(_difference(name, mine, first, other, seed))
    if not found:
        raise InputError(
            f"{', '.join(map(str, folders))}: no metric was measured on the same data in both"
        )
    return found


def _totals(rows: Sequence[Result]) -> dict[str, Result]:
    return {row.name: row for row in rows if row.value is not None and not row.subset}


def _difference(name: str, row: Result, first: Path, other: Path, seed: int) -> Difference:
    mine, theirs = (_numbers(folder, row.metric, row.variant) for folder in (first, other))
    if set(mine) != set(theirs):
        raise CheckpointError(f"{first} and {other} hold other items of {row.metric}")
    # Sum and count of each item by either: [N, 4].
    rows = np.array([(*mine[item], *theirs[item]) for item in mine])
    low, high = bootstrap_interval(rows.tolist(), _ratio_difference, seed=seed)
    observed = _ratio_difference(rows.sum(axis=0)[None])[0]
    draw = np.random.default_rng(seed)
    beyond = 0
    for _ in range(NUM_DRAWS // 100):
        # Were both alike, an item's numbers could as well be the other's.
        exchange = draw.random((100, len(rows), 1)) < 0.5
        drawn = np.where(exchange, rows[:, [2, 3, 0, 1]], rows)
        found = _ratio_difference(drawn.sum(axis=1))
        beyond += int((abs(found) >= abs(observed) - 1e-12).sum())
    return Difference(
        name=name,
        first=first,
        other=other,
        value=float(observed),
        ci95=(low, high),
        p=(beyond + 1) / (NUM_DRAWS + 1),
        n=len(rows),
    )


def _ratio_difference(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    difference: npt.NDArray[np.float64] = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    return difference


def _numbers(folder: Path, metric: str, variant: str) -> dict[str, tuple[float, float]]:
    path = folder / SCORES_FOLDER / f"{metric}.jsonl"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: run 'speechlm evaluate' anew into {folder}")
    items = [Item.from_dict(row) for row in read_items(path)]
    return numbers([item for item in items if not item.error], variant)


def comparison_table(differences: Sequence[Difference]) -> list[str]:
    """Lines to read."""
    width = max(len("metric"), *(len(one.name) for one in differences))
    lines = [f"{'metric':<{width}}  difference        95 % interval        p      n  with"]
    for one in differences:
        low, high = one.ci95
        lines.append(
            f"{one.name:<{width}}  {one.value:+10.2f}  {low:+7.2f} to {high:+7.2f}  {one.p:.4f}  "
            f"{one.n:5d}  {one.other}"
        )
    return lines
