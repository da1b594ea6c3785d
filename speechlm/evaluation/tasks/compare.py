"""Whether one model does better than another on the same items.

Both have met the same items, so items are compared one by one: what is hard for all does not
blur the difference. The interval is a bootstrap over items; the p-value says how often a
difference as large comes about where a draw decides which item is whose. A figure without
item scores, such as ABX, stands side by side without either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speechlm.errors import InputError
from speechlm.evaluation.intervals import bootstrap_interval
from speechlm.evaluation.significance import exchange_p, holm
from speechlm.evaluation.tasks.items import Item, numbers
from speechlm.evaluation.tasks.journal import SCORES_FOLDER, read_items
from speechlm.evaluation.tasks.results import Result, read_results


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What ``other`` has more than ``first``, in the metric's own unit."""

    first: Path
    other: Path
    mine: Result
    """The first's figure."""
    theirs: Result
    """The other's."""
    value: float | None = None
    """None where they were measured on different data."""
    ci95: tuple[float, float] | None = None
    """None, as ``p``, where they cannot be compared item by item."""
    p: float | None = None
    p_holm: float | None = None
    """``p`` after Holm's correction for all differences of one call."""
    n: int = 0
    """Items that both have."""
    left_out: int = 0
    """Items that only one of them has."""
    why: str = ""
    """Why there is no interval."""

    @property
    def name(self) -> str:
        return self.mine.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One item, of which the two say different things."""

    id: str
    first: float
    """In the metric's unit."""
    other: float
    first_note: Mapping[str, Any] = field(default_factory=dict)
    other_note: Mapping[str, Any] = field(default_factory=dict)


class Evaluated:
    """A folder that an evaluation wrote: its rows, and scores of items as they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Read the rows.

        Raises:
            CheckpointError: The folder does not hold what an evaluation wrote.
        """
        self.folder = folder
        self.rows = read_results(folder)
        self.figures = {row.name: row for row in self.rows if row.value is not None}
        self._journals: dict[str, tuple[dict[str, Any], list[Item]]] = {}

    def items(self, row: Result) -> list[Item]:
        """The items behind a row; none where they were not kept, or belong to another run."""
        path = self.folder / SCORES_FOLDER / f"{row.metric}.jsonl"
        if row.metric not in self._journals and path.is_file():
            with path.open(encoding="utf-8") as file:
                about = json.loads(file.readline())
            items = [Item.from_dict(line) for line in read_items(path)]
            self._journals[row.metric] = (about, items)
        about, items = self._journals.get(row.metric, ({}, []))
        # A run that was killed over other data has left its scores beside the older rows.
        if about.get("data_sha256") != row.data_sha256 or about.get("model") != row.subject.model:
            return []
        return [
            item
            for item in items
            if not item.error and (not row.subset or row.subset in item.subsets)
        ]


def compare(folders: Sequence[Path], seed: int = 1) -> list[Difference]:
    """Compare the first folder with each of the others, by every figure that they share.

    Raises:
        CheckpointError: A folder does not hold what an evaluation wrote.
        InputError: Nothing was measured on the same data.
    """
    return differences([Evaluated(folder) for folder in folders], seed)


def differences(evaluated: Sequence[Evaluated], seed: int) -> list[Difference]:
    """See :func:`compare`."""
    first = evaluated[0]
    found = [
        _difference(first, other, name, seed)
        for other in evaluated[1:]
        for name in first.figures
        if name in other.figures
    ]
    if all(one.value is None for one in found):
        names = ", ".join(str(each.folder) for each in evaluated)
        raise InputError(f"{names}: no metric was measured on the same data in both")
    corrected = iter(holm([one.p for one in found if one.p is not None]))
    return [one if one.p is None else replace(one, p_holm=next(corrected)) for one in found]


def _difference(first: Evaluated, other: Evaluated, name: str, seed: int) -> Difference:
    mine, theirs = first.figures[name], other.figures[name]
    blank = Difference(first=first.folder, other=other.folder, mine=mine, theirs=theirs)
    if mine.data_sha256 != theirs.data_sha256:
        return replace(blank, why="measured on different data")
    assert mine.value is not None
    assert theirs.value is not None
    own, others = (numbers(each.items(row), row.variant) for each, row in _both(first, other, name))
    shared = [item for item in own if item in others]
    rows = np.array([(*own[item], *others[item]) for item in shared]).reshape(-1, 4)
    if not rows[:, [1, 3]].sum(axis=0).all():
        return replace(blank, value=theirs.value - mine.value, why="no scores of single items")
    return replace(
        blank,
        value=float(_ratio_difference(rows.sum(axis=0)[None])[0]),
        ci95=bootstrap_interval(rows.tolist(), _ratio_difference, seed=seed),
        p=exchange_p(rows[:, :2], rows[:, 2:], seed=seed),
        n=len(shared),
        left_out=len(own.keys() ^ others.keys()),
    )


def _both(first: Evaluated, other: Evaluated, name: str) -> list[tuple[Evaluated, Result]]:
    return [(each, each.figures[name]) for each in (first, other)]


def _ratio_difference(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    difference: npt.NDArray[np.float64] = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    return difference


def changes(first: Evaluated, other: Evaluated, name: str) -> list[Change]:
    """The items of a figure of which the two differ, those that fell most first."""
    items = [each.items(row) for each, row in _both(first, other, name)]
    variant = first.figures[name].variant
    own, others = (numbers(part, variant) for part in items)
    notes = [{item.id: item.note for item in reversed(part)} for part in items]
    found = [
        Change(
            id=item,
            first=own[item][0] / own[item][1],
            other=others[item][0] / others[item][1],
            first_note=notes[0][item],
            other_note=notes[1][item],
        )
        for item in own
        if item in others and own[item][1] and others[item][1] and own[item] != others[item]
    ]
    return sorted(found, key=lambda one: (one.other - one.first, one.id))


def comparison_table(differences: Sequence[Difference]) -> list[str]:
    """Lines to read."""
    width = max(len("metric"), *(len(one.name) for one in differences))
    lines = [
        f"{'metric':<{width}}    first    other  difference        95 % interval       p    Holm"
        "      n  with"
    ]
    for one in differences:
        line = f"{one.name:<{width}}  {one.mine.value:7.2f}  {one.theirs.value:7.2f}"
        line += " " * 12 if one.value is None else f"  {one.value:+10.2f}"
        if one.ci95 is None or one.p is None or one.p_holm is None:
            lines.append(f"{line}  {one.why}: {one.other}")
            continue
        low, high = one.ci95
        left = f", without {one.left_out} items that one alone has" if one.left_out else ""
        lines.append(
            f"{line}  {low:+7.2f} to {high:+7.2f}  {one.p:.4f}  {one.p_holm:.4f}  {one.n:5d}  "
            f"{one.other}{left}"
        )
    return lines
