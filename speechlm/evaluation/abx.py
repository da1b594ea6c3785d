"""ABX: whether features tell phones apart, without learning anything from them.

Of three stretches of speech, A and X are of one phone and B is of another, all between the same
neighbours; the answer is right where X is nearer to A. *Within* speaker, all three are of one
voice; *across*, X is of another than A and B. The error is what is not right, in percent; ties
count a half, and chance is 50.

How near two stretches are is the mean distance of their frames along the path on which dynamic
time warping lays them upon each other, as ZeroSpeech and fastabx have it. All pairs of like
length are warped at once.

Sources:
    Schatz et al. 2013 (ABX), Interspeech; Nguyen et al. 2020 (ZeroSpeech 2021), arXiv:2011.11588;
    Kahn et al. 2020 (Libri-Light), arXiv:1912.07875.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from speechlm.errors import CorpusError
from speechlm.evaluation.intervals import mean_interval
from speechlm.progress import progress

Distance = Literal["angular", "euclidean", "kl-symmetric", "identical"]
Speakers = Literal["within", "across"]
HEADER = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
EPSILON = 1e-6
CELLS_AT_ONCE = 2**17
"""Frames of one against frames of the other that are warped at once: as many as caches hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A phone somewhere in a recording."""

    file: str
    """Name of the recording, without its ending."""
    onset_s: Decimal
    offset_s: Decimal
    phone: str
    before: str
    after: str
    speaker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """All that is compared for one pair of phones between the same neighbours; item numbers."""

    phones: tuple[str, str]
    context: tuple[str, str]
    speakers: tuple[str, str]
    """Of A and B, and of X."""
    a: tuple[int, ...]
    b: tuple[int, ...]
    x: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ABXError:
    """The error in percent with its 95 % interval over pairs of phones."""

    value: float
    ci95: tuple[float, float]
    num_cells: int
    num_triples: int
    by_pair: Mapping[tuple[str, str], float]
    """The error of each pair of phones, of A and X and of B, in percent; ``value`` is the mean."""
    by_cell: Mapping[tuple[str, str], tuple[float, int]]
    """The sum of the errors of its cells, in percent, and how many there are; all sums by all
    counts are the mean over cells, in which frequent pairs of phones count more."""


def read_items(path: Path) -> list[Item]:
    """Read an item file of ABXpy, Libri-Light or ZeroSpeech.

    Raises:
        CorpusError: It is none, or a phone ends before it begins.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise CorpusError(f"{path} is missing: expected an item file") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected UTF-8 text") from error
    if not lines or tuple(lines[0].split()) != HEADER:
        raise CorpusError(
            f"{path}: expected the header {' '.join(HEADER)!r}, got {(lines or [''])[0][:80]!r}"
        )
    items = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            file, onset, offset, phone, before, after, speaker = line.split()
            item = Item(
                file=file,
                onset_s=Decimal(onset),
                offset_s=Decimal(offset),
                phone=phone,
                before=before,
                after=after,
                speaker=speaker,
            )
        except (ValueError, ArithmeticError) as error:
            raise CorpusError(f"{path}:{number}: expected 7 fields, got {line[:80]!r}") from error
        if not 0 <= item.onset_s < item.offset_s:
            raise CorpusError(f"{path}:{number}: expected an offset after the onset, got {line!r}")
        items.append(item)
    return items


def frames_of(item: Item, frame_rate: Decimal, *, librilight: bool = False) -> slice:
    """The frames whose middle lies within an item.

    Args:
        item: The phone.
        frame_rate: Frames a second.
        librilight: Leave out the last of them, as Libri-Light and ZeroSpeech 2021 did.
    """
    half = Decimal("0.5")
    start = (item.onset_s * frame_rate - half).to_integral_value(ROUND_CEILING)
    last = (item.offset_s * frame_rate - half).to_integral_value(ROUND_FLOOR)
    return slice(max(0, int(start)), int(last) + (0 if librilight else 1))


def make_cells(
    items: Sequence[Item],
    speakers: Speakers,
    *,
    max_group: int | None = 10,
    max_others: int | None = 5,
    seed: int = 0,
) -> list[Cell]:
    """What there is to compare.

    Args:
        items: All phones.
        speakers: Whether X is of the same voice.
        max_group: Most A, B and X of a cell, drawn where there are more; 10 in ZeroSpeech.
        max_others: Across, most voices of X for A and B; 5 in ZeroSpeech.
        seed: Of the draws, which do not hang on each other.
    """
    groups: dict[tuple[str, str], dict[str, dict[str, list[int]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for number, item in enumerate(items):
        groups[item.before, item.after][item.speaker][item.phone].append(number)

    def few(numbers: Sequence[int], *what: str) -> tuple[int, ...]:
        if max_group is None or len(numbers) <= max_group:
            return tuple(numbers)
        return tuple(random.Random(f"{seed} {what}").sample(numbers, max_group))

    cells = []
    for context, voices in sorted(groups.items()):
        for voice, phones in sorted(voices.items()):
            for first in sorted(phones):
                others = [voice]
                if speakers == "across":
                    others = [each for each in sorted(voices) if each != voice]
                    others = [each for each in others if voices[each].get(first)]
                    if max_others is not None and len(others) > max_others:
                        draw = random.Random(f"{seed} {context} {voice} {first}")
                        others = sorted(draw.sample(others, max_others))
                for second in sorted(set(phones) - {first}):
                    for other in others:
                        a = few(phones[first], *context, voice, first)
                        x = few(voices[other][first], *context, other, first)
                        if speakers == "within" and len(a) < 2:
                            continue
                        cells.append(
                            Cell(
                                phones=(first, second),
                                context=context,
                                speakers=(voice, other),
                                a=a,
                                b=few(phones[second], *context, voice, second),
                                x=x,
                            )
                        )
    return cells


def measure_abx(
    features: Mapping[str, Tensor],
    items: Sequence[Item],
    frame_rate: float,
    *,
    speakers: Speakers = "within",
    distance: Distance = "angular",
    max_group: int | None = 10,
    max_others: int | None = 5,
    librilight: bool = False,
    seed: int = 0,
) -> ABXError:
    """The ABX error of features.

    Args:
        features: Of each file, float [F, D]; units as [F, 1] for ``identical``; probabilities
            for ``kl-symmetric``.
        items: Phones; those that no frame's middle lies in are left out.
        frame_rate: Frames a second.
        speakers: Whether X is of the voice of A and B.
        distance: Between two frames.
        max_group: See :func:`make_cells`.
        max_others: The same.
        librilight: See :func:`frames_of`.
        seed: Of the draws.

    Raises:
        CorpusError: A file has no features, or there is nothing to compare.
    """
    rate = Decimal(str(frame_rate))
    stretches, kept = [], []
    for item in items:
        if item.file not in features:
            raise CorpusError(f"expected features of {item.file!r}, got none")
        stretch = features[item.file][frames_of(item, rate, librilight=librilight)]
        if len(stretch):
            stretches.append(_prepared(stretch.float(), distance))
            kept.append(item)
    cells = make_cells(kept, speakers, max_group=max_group, max_others=max_others, seed=seed)
    if not cells:
        raise CorpusError(
            f"expected phones between the same neighbours, {speakers} speaker, got none among "
            f"{len(kept)}"
        )
    near = _warp_all(stretches, cells, distance)
    errors = [(cell, _error(cell, near)) for cell in cells]
    by_pair = {phones: 100 * error for phones, error in _collapse(errors).items()}
    low, high = mean_interval(list(by_pair.values()), seed=seed)
    return ABXError(
        value=sum(by_pair.values()) / len(by_pair),
        ci95=(low, high),
        by_pair=by_pair,
        by_cell=_sums(errors),
        num_cells=len(cells),
        num_triples=sum(_triples(cell) for cell in cells),
    )


def _collapse(errors: Sequence[tuple[Cell, float]]) -> dict[tuple[str, str], float]:
    """Means over neighbours and voices of X, then over voices of A and B, of each pair of phones.

    As ZeroSpeech 2021 and fastabx do it: a voice of X counts by the neighbours it shares.
    """
    voices: dict[tuple[tuple[str, str], str], list[float]] = defaultdict(list)
    for cell, error in errors:
        voices[cell.phones, cell.speakers[0]].append(error)
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (phones, _), found in voices.items():
        pairs[phones].append(sum(found) / len(found))
    return {phones: sum(found) / len(found) for phones, found in sorted(pairs.items())}


def _sums(errors: Sequence[tuple[Cell, float]]) -> dict[tuple[str, str], tuple[float, int]]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell, error in errors:
        found[cell.phones].append(100 * error)
    return {phones: (sum(values), len(values)) for phones, values in sorted(found.items())}


def _triples(cell: Cell) -> int:
    same = len(set(cell.a) & set(cell.x))
    return (len(cell.a) * len(cell.x) - same) * len(cell.b)


def _error(cell: Cell, near: Mapping[tuple[int, int], float]) -> float:
    """The share of triples answered wrongly; X is never its own A."""
    to_a = np.array(
        [[near[_pair(cell, x, a)] if x != a else math.inf for a in cell.a] for x in cell.x]
    )[:, :, None]
    to_b = np.array([[near[x, b] for b in cell.b] for x in cell.x])[:, None, :]
    others = np.isfinite(to_a[:, :, 0])
    wrong = (to_a > to_b) + 0.5 * (to_a == to_b)
    return float(wrong[others].mean())


def _pair(cell: Cell, x: int, a: int) -> tuple[int, int]:
    """X and A in the order in which they are warped: of equal paths it decides the length.

    Where A and X are the same items, both orders are one, as fastabx has it.
    """
    return (a, x) if cell.a == cell.x and a < x else (x, a)


def _warp_all(
    stretches: Sequence[Tensor], cells: Sequence[Cell], distance: Distance
) -> dict[tuple[int, int], float]:
    """How near each pair is that some cell needs, every pair once."""
    needed = {_pair(cell, x, a) for cell in cells for x in cell.x for a in cell.a if x != a}
    needed |= {(x, b) for cell in cells for x in cell.x for b in cell.b}
    sizes = [len(stretch) for stretch in stretches]
    frames, lengths = torch.cat(list(stretches)), torch.tensor(sizes)
    ends = lengths.cumsum(0)
    # Like lengths together: little is warped that is only filling.
    order = sorted(needed, key=lambda pair: (sizes[pair[0]], sizes[pair[1]], pair))
    near: dict[tuple[int, int], float] = {}
    with _one_thread(), progress("warping", len(order), "pairs") as advance:
        for batch in _batches(order, sizes):
            one, other = torch.tensor(batch).T
            rows, columns = lengths[one], lengths[other]
            first, second = (_padded(frames, ends[each], lengths[each]) for each in (one, other))
            found = warp(frame_distances(first, second, distance), rows, columns)
            near.update(zip(batch, found.tolist(), strict=True))
            advance(len(batch))
    return near


@contextmanager
def _one_thread() -> Iterator[None]:
    """Batches fit into caches, so that sharing them out costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(
    order: Sequence[tuple[int, int]], sizes: Sequence[int]
) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    longest = widest = 0
    for pair in order:
        rows, columns = sizes[pair[0]], sizes[pair[1]]
        bounds = max(longest, rows), max(widest, columns)
        if batch and (len(batch) + 1) * bounds[0] * bounds[1] > CELLS_AT_ONCE:
            yield batch
            batch, bounds = [], (rows, columns)
        longest, widest = bounds
        batch.append(pair)
    if batch:
        yield batch


def _padded(frames: Tensor, ends: Tensor, sizes: Tensor) -> Tensor:
    """Stretches of ``frames`` [F, D] by where they end, [P, N, D]; the last frame fills them up."""
    places = torch.arange(int(sizes.max())).expand(len(sizes), -1)
    return frames[(ends - sizes)[:, None] + places.minimum(sizes[:, None] - 1)]


def _prepared(stretch: Tensor, distance: Distance) -> Tensor:
    """Frames as :func:`frame_distances` takes them, float32 [F, D']."""
    if distance == "angular":
        norms = stretch.norm(dim=1, keepdim=True)
        flat = torch.full_like(stretch, stretch.shape[1] ** -0.5)
        # A frame of zeros is as far from any other as can be told, and near to its like.
        border = torch.where(norms == 0, -2e-12, 1e-12)
        return torch.cat(
            [torch.where(norms == 0, flat, stretch / norms.clamp(min=1e-30)), border], 1
        )
    if distance == "kl-symmetric":
        logs = (stretch + EPSILON).log()
        return torch.cat([stretch, logs - logs.mean(dim=1, keepdim=True)], dim=1)
    return stretch


def frame_distances(first: Tensor, second: Tensor, distance: Distance) -> Tensor:
    """Distances float32 [P, N, M] of frames float32 [P, N, D] and [P, M, D], prepared."""
    if distance == "angular":
        return (first @ second.mT).clamp(-1, 1).acos() / math.pi
    if distance == "euclidean":
        return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    if distance == "identical":
        return (first != second.mT).float()
    p, log_p = first.chunk(2, dim=2)
    q, log_q = second.chunk(2, dim=2)
    own = (p * log_p).sum(2)[:, :, None] + (q * log_q).sum(2)[:, None, :]
    return 0.5 * (own - p @ log_q.mT - log_p @ q.mT)


def warp(distances: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Dynamic time warping of many pairs at once.

    Args:
        distances: Of frames, float32 [P, N, M]; what lies beyond ``rows`` and ``columns`` is not
            read into the result.
        rows: Frames of the first of each pair, int64 [P], at least 1.
        columns: The same of the second.

    Returns:
        The sum along the cheapest path by the number of its steps, float32 [P]. Of equally cheap
        steps the diagonal one is taken, then the one along the second.
    """
    num_pairs, height, width = distances.shape
    # By diagonal, row and pair: what a diagonal hangs on, the two before it, are then plain slices.
    # NumPy's calls cost less than torch's, and there are many of them.
    lattice = distances.permute(1, 2, 0).contiguous().numpy()
    cost = np.full((height + width + 1, height + 1, num_pairs), np.inf, dtype=np.float32)
    steps = np.zeros(cost.shape, dtype=np.float32)
    cost[0, 0] = 0
    for diagonal in range(2, height + width + 1):
        first, last = max(1, diagonal - width), min(height, diagonal - 1)
        here, above = slice(first, last + 1), slice(first - 1, last)
        across, along = cost[diagonal - 2, above], cost[diagonal - 1, here]
        best, taken = cost[diagonal, here], steps[diagonal, here]  # written in place
        np.minimum(along, cost[diagonal - 1, above], out=best)
        np.minimum(across, best, out=best)
        taken[:] = steps[diagonal - 1, above]
        np.copyto(taken, steps[diagonal - 1, here], where=along == best)
        np.copyto(taken, steps[diagonal - 2, above], where=across == best)
        taken += 1
        row = np.arange(first - 1, last)
        best += lattice[row, diagonal - 2 - row]
    ends = (rows + columns).numpy(), rows.numpy(), np.arange(num_pairs)
    return torch.from_numpy(cost[ends] / steps[ends])
