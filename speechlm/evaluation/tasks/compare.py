"""Whether one model does better than another on the same pairs.

Both have met the same items, so items are compared one by one: what is hard for all does not
blur the difference. The interval is a bootstrap over items; the p-value says how often a
difference as large comes about where signs are drawn at random.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechlm.errors import CheckpointError, InputError
from speechlm.evaluation.intervals import bootstrap_interval
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
    items = [_credits(folder, row.metric, row.variant) for folder in (first, other)]
    if list(items[0]) != list(items[1]):
        raise CheckpointError(f"{first} and {other} hold other items of {row.metric}")
    differences = np.array([100 * (items[1][item] - items[0][item]) for item in items[0]])
    low, high = bootstrap_interval(
        [[value, 1.0] for value in differences], lambda sums: sums[:, 0] / sums[:, 1], seed=seed
    )
    draw = np.random.default_rng(seed)
    observed = abs(differences.mean())
    beyond = 0
    for _ in range(NUM_DRAWS // 100):
        signs = draw.choice([-1.0, 1.0], size=(100, len(differences)))
        beyond += int((abs((signs * differences).mean(axis=1)) >= observed - 1e-12).sum())
    return Difference(
        name=name,
        first=first,
        other=other,
        value=float(differences.mean()),
        ci95=(low, high),
        p=(beyond + 1) / (NUM_DRAWS + 1),
        n=len(differences),
    )


def _credits(folder: Path, metric: str, variant: str) -> dict[str, float]:
    """Each item's mean over its pairs, 0 to 1."""
    path = folder / "scores" / f"{metric}.jsonl"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: run 'speechlm evaluate' anew into {folder}")
    items: dict[str, list[float]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        row = json.loads(line)
        if not row["error"]:
            positive, negative = row["scores"][variant]
            credit = 0.5 if positive == negative else float(positive > negative)
            items[row["item"]].append(credit)
    return {item: sum(credits) / len(credits) for item, credits in items.items()}


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
