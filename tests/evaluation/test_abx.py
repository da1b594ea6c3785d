"""ABX against a slow reference that warps pair by pair, and what must hold whatever features."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.errors import CorpusError
from speechlm.evaluation import abx
from speechlm.evaluation.abx import (
    HEADER,
    Distance,
    Item,
    Speakers,
    frames_of,
    make_cells,
    measure_abx,
    read_items,
    warp,
)

DISTANCES: tuple[Distance, ...] = ("angular", "euclidean", "kl-symmetric", "identical")


def slow_warp(distances: list[list[float]]) -> float:
    """Dynamic time warping as it is written down, then its path from the end to the beginning."""
    height, width = len(distances), len(distances[0])
    cost = [[0.0] * width for _ in range(height)]
    for i in range(height):
        for j in range(width):
            before = [
                cost[i - 1][j - 1] if i and j else math.inf,
                cost[i][j - 1] if j else math.inf,
                cost[i - 1][j] if i else math.inf,
            ]
            cost[i][j] = distances[i][j] + (min(before) if i or j else 0.0)
    i, j, steps = height - 1, width - 1, 1
    while i or j:
        diagonal = cost[i - 1][j - 1] if i and j else math.inf
        along = cost[i][j - 1] if j else math.inf
        up = cost[i - 1][j] if i else math.inf
        if diagonal <= along and diagonal <= up:
            i, j = i - 1, j - 1
        elif along <= up:
            j -= 1
        else:
            i -= 1
        steps += 1
    return cost[-1][-1] / steps


def slow_distance(first: Tensor, second: Tensor, kind: Distance) -> float:
    a, b = first.double(), second.double()
    if kind == "identical":
        return float(a[0] != b[0])
    if kind == "euclidean":
        return math.dist(a.tolist(), b.tolist())
    if kind == "kl-symmetric":
        p, q = a + 1e-6, b + 1e-6
        return float(0.5 * ((a * (p.log() - q.log())).sum() + (b * (q.log() - p.log())).sum()))
    cosine = float(a @ b / (a.norm() * b.norm()))
    return math.acos(max(-1.0, min(1.0, cosine))) / math.pi


def slow_abx(
    features: dict[str, Tensor], items: list[Item], speakers: Speakers, kind: Distance
) -> float:
    """Every triple there is, none drawn; means over neighbours and voices of X, over voices of A
    and B, then over pairs of phones."""
    stretches = [features[item.file][frames_of(item, Decimal(100))] for item in items]

    def near(first: int, second: int) -> float:
        return slow_warp(
            [[slow_distance(a, b, kind) for b in stretches[second]] for a in stretches[first]]
        )

    scores: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for a, one in enumerate(items):
        for b, two in enumerate(items):
            for x, three in enumerate(items):
                same = (one.before, one.after) == (two.before, two.after)
                same &= (one.before, one.after) == (three.before, three.after)
                fits = one.phone == three.phone != two.phone and one.speaker == two.speaker
                other = (one.speaker == three.speaker) == (speakers == "within")
                if same and fits and other and a != x:
                    # Of the same voice, each pair is warped once, in the order of the items.
                    low = (min(x, a), max(x, a)) if speakers == "within" else (x, a)
                    far = near(*low) - near(x, b)
                    wrong = 0.5 if abs(far) < 1e-7 else float(far > 0)
                    where = (
                        one.phone,
                        two.phone,
                        one.speaker,
                        three.speaker,
                        one.before,
                        one.after,
                    )
                    scores[where].append(wrong)

    def means(
        found: dict[tuple[str, ...], list[float]], keep: int
    ) -> dict[tuple[str, ...], list[float]]:
        outer: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for key, values in found.items():
            outer[key[:keep]].append(sum(values) / len(values))
        return outer

    for keep in (6, 3, 2, 0):
        scores = means(scores, keep) if keep < 6 else scores
    (last,) = scores.values()
    return 100 * sum(last) / len(last)


def world(seed: int, distance: Distance = "euclidean") -> tuple[dict[str, Tensor], list[Item]]:
    """Two voices, three phones between two pairs of neighbours, several of each."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    features, items = {}, []
    for speaker in ("s1", "s2"):
        for number in range(6):
            file = f"{speaker}-{number}"
            frames = torch.randn(40, 3, generator=generator).abs() + 0.1
            if distance == "identical":
                frames = torch.randint(4, (40, 1), generator=generator)
            features[file] = (
                frames / frames.sum(1, keepdim=True) if distance == "kl-symmetric" else frames
            )
            time = 0.0
            for _ in range(3):
                length = draw.choice((0.03, 0.05, 0.08))
                items.append(
                    Item(
                        file=file,
                        onset_s=Decimal(f"{time:.2f}"),
                        offset_s=Decimal(f"{time + length:.2f}"),
                        phone=draw.choice("pqr"),
                        before=draw.choice("ab"),
                        after="c",
                        speaker=speaker,
                    )
                )
                time += length
    return features, items


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("speakers", ["within", "across"])
def test_it_is_what_the_slow_reference_says(distance: Distance, speakers: Speakers) -> None:
    features, items = world(3, distance)
    found = measure_abx(
        features,
        items,
        100.0,
        speakers=speakers,
        distance=distance,
        max_group=None,
        max_others=None,
    )
    assert found.value == pytest.approx(slow_abx(features, items, speakers, distance), abs=1e-3)
    assert found.num_triples > 20
    assert found.ci95[0] <= found.value <= found.ci95[1]


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000), st.booleans())
def test_many_warped_at_once_are_each_alone(height: int, width: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(5, height, width, generator=generator)
    if ties:
        distances = (2 * distances).round()
    rows = torch.randint(1, height + 1, (5,), generator=generator)
    columns = torch.randint(1, width + 1, (5,), generator=generator)
    found = warp(distances, rows, columns)
    for index, value in enumerate(found.tolist()):
        part = distances[index, : rows[index], : columns[index]]
        assert value == pytest.approx(slow_warp(part.tolist()), abs=1e-5)


@pytest.mark.parametrize("most", [40, 2_000_000])
def test_how_many_are_warped_at_once_changes_nothing(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abx, "CELLS_AT_ONCE", most)
    features, items = world(5)
    assert measure_abx(features, items, 100.0).value == pytest.approx(40.0, abs=30)
    monkeypatch.setattr(abx, "CELLS_AT_ONCE", 500)
    assert measure_abx(features, items, 100.0) == measure_abx(features, items, 100.0)


def test_features_that_are_the_phone_make_no_error() -> None:
    features, items = world(4)
    for item in items:
        code = {"p": [1.0, 0, 0], "q": [0, 1.0, 0], "r": [0, 0, 1.0]}[item.phone]
        features[item.file][frames_of(item, Decimal(100))] = torch.tensor(code)
    for speakers in ("within", "across"):
        assert measure_abx(features, items, 100.0, speakers=speakers).value == 0.0


def test_features_that_say_nothing_are_chance() -> None:
    features, items = world(4)
    same = {file: torch.ones_like(frames) for file, frames in features.items()}
    found = measure_abx(same, items, 100.0, speakers="across", distance="euclidean")
    assert found.value == 50.0
    assert found.ci95 == (50.0, 50.0)


def test_shuffled_phones_are_chance_within_the_interval() -> None:
    inside = 0
    for seed in range(10):
        features, items = world(seed)
        low, high = measure_abx(features, items, 100.0, speakers="across").ci95
        inside += low <= 50 <= high
    assert inside >= 8


def test_frames_are_those_whose_middle_lies_within() -> None:
    item = world(1)[1][0]
    features = {"onset_s": Decimal("0.095"), "offset_s": Decimal("0.205")}
    placed = Item(**{name: getattr(item, name) for name in Item.__slots__} | features)
    assert frames_of(placed, Decimal(100)) == slice(9, 21)
    assert frames_of(placed, Decimal(100), librilight=True) == slice(9, 20)
    assert frames_of(placed, Decimal(50)) == slice(5, 10)


def test_draws_hold_cells_to_size_and_repeat() -> None:
    _, items = world(2)
    cells = make_cells(items * 4, "within", max_group=3, seed=7)
    assert max(len(group) for cell in cells for group in (cell.a, cell.b, cell.x)) == 3
    assert cells == make_cells(items * 4, "within", max_group=3, seed=7)
    assert cells != make_cells(items * 4, "within", max_group=3, seed=8)
    assert all(cell.a == cell.x for cell in cells)


def test_item_files_are_read_and_bad_lines_named(tmp_path: Path) -> None:
    path = tmp_path / "a.item"
    path.write_text(" ".join(HEADER) + "\nf1 0.10 0.25 AH K T s1\n")
    (item,) = read_items(path)
    assert (item.file, item.phone, item.before, item.after) == ("f1", "AH", "K", "T")
    assert item.offset_s - item.onset_s == Decimal("0.15")
    for bad, message in (
        ("f1 0.10 AH K T s1", ":2: expected 7 fields"),
        ("f1 0.3 0.2 AH K T s1", ":2: expected an offset after the onset"),
    ):
        path.write_text(" ".join(HEADER) + f"\n{bad}\n")
        with pytest.raises(CorpusError, match=message):
            read_items(path)
    path.write_text("f1 0.1 0.2\n")
    with pytest.raises(CorpusError, match="expected the header"):
        read_items(path)
    with pytest.raises(CorpusError, match="is missing"):
        read_items(tmp_path / "none.item")


def test_what_cannot_be_compared_is_told() -> None:
    features, items = world(1)
    with pytest.raises(CorpusError, match="expected features of"):
        measure_abx({}, items, 100.0)
    with pytest.raises(CorpusError, match="expected phones between the same neighbours"):
        measure_abx(features, items[:1], 100.0)
