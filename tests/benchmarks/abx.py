"""ABX of 600 stretches of speech, as long as triphones are at 100 Hz, against warping one by one.

The loop is dynamic time warping as it is written down, in Python, over distances of frames that
NumPy computes a pair at a time. A cell at a time it warps what the cell compares; shown beside it,
it keeps what it has warped for other cells, and takes either order of a pair for the other. All
compare the same cells, and their errors agree.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial

import numpy as np
import torch
from bench import in_turns, start
from torch import Tensor

from speechlm.evaluation.abx import Cell, Item, frames_of, make_cells, measure_abx

NUM_PHONES, WIDTH = 150, 39
"""Stretches of each voice, and features of a frame."""
VOICES, PHONES, NEIGHBOURS = ("s1", "s2", "s3", "s4"), "pqrstu", "abcdefgh"
FRAME_RATE = 100.0
TARGET = 5.0


def main(words: list[str] | None = None) -> None:
    bench = start("abx", "ABX of phones, against warping pair by pair", words, __doc__)
    features, items = make_phones(40 if bench.args.quick else NUM_PHONES)
    for speakers in ("within", "across"):
        cells = make_cells(items, speakers)
        contenders = {
            "ours": partial(measure_abx, features, items, FRAME_RATE, speakers=speakers),
            "loop": partial(loop_abx, features, items, cells, keep=False),
            "kept": partial(loop_abx, features, items, cells, keep=True),
        }
        ours = contenders["ours"]().by_cell
        mean = sum(total for total, _ in ours.values()) / len(cells)
        # The order of a pair decides between paths that are equally cheap.
        for name in ("loop", "kept"):
            assert abs(mean - contenders[name]()) < 0.05, "they disagree"
        times = in_turns(contenders, bench.args.pairs, warm=True)
        for what, theirs, target in (
            (f"{speakers} speaker, {len(cells)} cells", "loop", TARGET),
            ("the same, against one that keeps what it warped", "kept", None),
        ):
            bench.compare(
                what, times, "ours", theirs, amount=len(cells), unit="ms/cell", target=target
            )
    lengths = [len(frames_of_item(features, item)) for item in items]
    bench.notes.append(
        f"{len(items)} stretches of {min(lengths)} to {max(lengths)} frames of {WIDTH} features"
    )
    bench.finish()


def make_phones(number: int) -> tuple[dict[str, Tensor], list[Item]]:
    """A recording a voice, of phones one after another, each with a middle of its own."""
    draw, generator = random.Random(1), torch.Generator().manual_seed(1)
    middles = {phone: torch.randn(WIDTH, generator=generator) for phone in PHONES}
    features, items = {}, []
    for voice in VOICES:
        parts, place = [], 0
        for _ in range(number):
            phone, length = draw.choice(PHONES), draw.randint(12, 36)
            noise = 3.0 * torch.randn(length, WIDTH, generator=generator)
            parts.append(middles[phone] + noise)
            items.append(
                Item(
                    file=voice,
                    onset_s=Decimal(place) / 100,
                    offset_s=Decimal(place + length) / 100,
                    phone=phone,
                    before=draw.choice(NEIGHBOURS),
                    after="z",
                    speaker=voice,
                )
            )
            place += length
        features[voice] = torch.cat(parts)
    return features, items


def frames_of_item(features: Mapping[str, Tensor], item: Item) -> Tensor:
    return features[item.file][frames_of(item, Decimal(str(FRAME_RATE)))]


def loop_abx(
    features: Mapping[str, Tensor], items: Sequence[Item], cells: Sequence[Cell], *, keep: bool
) -> float:
    """The mean error over cells, in percent."""
    units = []
    for item in items:
        frames = frames_of_item(features, item)
        units.append((frames / frames.norm(dim=1, keepdim=True)).numpy())
    near: dict[tuple[int, int], float] = {}

    def distance(x: int, other: int) -> float:
        pair = (x, other) if x < other else (other, x)
        if pair not in near:
            cosines = units[pair[0]] @ units[pair[1]].T
            near[pair] = warp_one((np.arccos(cosines.clip(-1, 1)) / math.pi).tolist())
        return near[pair]

    errors = []
    for cell in cells:
        if not keep:
            near.clear()
        wrong = count = 0.0
        for x in cell.x:
            to_b = [distance(x, b) for b in cell.b]
            for a in cell.a:
                if a != x:
                    to_a = distance(x, a)
                    wrong += sum(0.5 if to_a == b else float(to_a > b) for b in to_b)
                    count += len(to_b)
        errors.append(100 * wrong / count)
    return sum(errors) / len(errors)


def warp_one(distances: list[list[float]]) -> float:
    """The sum along the cheapest path by its steps, cell after cell."""
    before = [(math.inf, 0)] * (len(distances[0]) + 1)
    before[0] = (0.0, 0)
    for row in distances:
        current = [(math.inf, 0)]
        for column, distance in enumerate(row):
            across, along, up = before[column], current[column], before[column + 1]
            best = across if across[0] <= along[0] and across[0] <= up[0] else along
            if best is along and up[0] < along[0]:
                best = up
            current.append((best[0] + distance, best[1] + 1))
        before = current
    total, steps = before[-1]
    return total / steps


if __name__ == "__main__":
    main()
