"""What single items say, and figures of many: the one way in which every benchmark counts.

An item (a pair, a recording, a question) gives each figure two numbers, a sum and a count: 100
and 1 for a right answer, errors and words for a word error rate. A figure is what all sums add up
to by all counts. So a mean, a share and a rate over a corpus are one thing, with one interval,
and two models are compared item by item whatever was measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from speechlm.evaluation.intervals import ratio_interval, wilson_interval

RIGHT = (100.0, 1.0)
WRONG = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item of a benchmark: what it adds to each figure, or why it adds nothing."""

    id: str
    """Items of one id count as one, such as a word in several voices: their numbers' mean."""
    figures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Sum and count by the variant of the figure."""
    subsets: tuple[str, ...] = ()
    """Parts of the data that it belongs to, beside the whole, as ``type=anaphora``."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """What it was made of and whatever a reader may want to see, such as a transcript."""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`."""
        figures = {name: (both[0], both[1]) for name, both in row["figures"].items()}
        return cls(**{**row, "figures": figures, "subsets": tuple(row["subsets"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A value with its 95 % interval, of ``n`` items."""

    value: float
    ci95: tuple[float, float]
    n: int


def figure(items: Sequence[Item], variant: str, seed: int) -> Figure | None:
    """What the items say of a variant; None if none of them says anything.

    The interval is Wilson's where each item is right or wrong, else a bootstrap over items.
    """
    rows = list(numbers(items, variant).values())
    count = sum(row[1] for row in rows)
    if not count:
        return None
    value = sum(row[0] for row in rows) / count
    if set(rows) <= {RIGHT, WRONG}:
        low, high = (100 * end for end in wilson_interval(rows.count(RIGHT), len(rows)))
    else:
        low, high = ratio_interval(rows, seed=seed)
    return Figure(value=value, ci95=(low, high), n=len(rows))


def numbers(items: Sequence[Item], variant: str) -> dict[str, tuple[float, float]]:
    """Sum and count of each id, the mean over its items; without those that lack the variant."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in items:
        if variant in item.figures:
            found[item.id].append(item.figures[variant])
    return {
        name: (sum(row[0] for row in rows) / len(rows), sum(row[1] for row in rows) / len(rows))
        for name, rows in found.items()
    }


def variants(items: Sequence[Item]) -> list[str]:
    """Every variant that an item has, in the order in which they come."""
    return list(dict.fromkeys(name for item in items for name in item.figures))


def subsets(items: Sequence[Item]) -> dict[str, list[Item]]:
    """The whole under ``""``, and its parts, unless there is but one of a kind."""
    parts: dict[str, list[Item]] = {"": list(items)}
    for item in items:
        for name in item.subsets:
            parts.setdefault(name, []).append(item)
    kinds = defaultdict(list)
    for name in parts:
        kinds[name.partition("=")[0]].append(name)
    alone = {names[0] for names in kinds.values() if len(names) == 1}
    return {
        name: part
        for name, part in parts.items()
        if not (name and name in alone and len(part) == len(items))
    }
