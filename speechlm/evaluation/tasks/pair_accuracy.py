"""How often a model finds the right recording of a pair the more probable one, in percent.

Each recording has a likelihood given its units, and four figures are made of it, since papers use
each of them and they differ:

``sum``
    of the log-probabilities of all units (ZeroSpeech, GSLM).
``per_unit``
    their mean (slamkit's default, TWIST), which forgives length.
``per_second``
    the sum by the seconds of sound.
``localised``
    the sum over what differs alone: without the units that both begin with, and those that both
    end with.

A pair counts 1 where the right one is more probable, a half where both are equally so; items
with several pairs, such as a word in several voices, count once. Chance is 50.

Sources:
    Nguyen et al. 2020 (ZeroSpeech 2021), arXiv:2011.11588; Hassid et al. 2023 (TWIST),
    arXiv:2305.13009; arXiv:2601.06329 (localised).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from speechlm.audio import load_audio
from speechlm.bundle import SpeechLM
from speechlm.errors import InputError, SpeechLMError
from speechlm.evaluation.intervals import bootstrap_interval, wilson_interval
from speechlm.evaluation.tasks.pairs import Pair
from speechlm.model.likelihood import Likelihood, score_recordings, score_span
from speechlm.units import Units

VARIANTS = ("sum", "per_unit", "per_second", "localised")
PAIRS_AT_ONCE = 64
BANDS = ((1, 5), (6, 20), (21, 100))
"""Of ZeroSpeech 2021: how often a word comes in the training data; ``oov`` and more beside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Both likelihoods of a pair by variant, or why there are none."""

    pair: Pair
    scores: Mapping[str, tuple[float, float]]
    error: str = ""

    def credit(self, variant: str) -> float:
        """1, a half or 0."""
        positive, negative = self.scores[variant]
        return 0.5 if positive == negative else float(positive > negative)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A share in percent with its 95 % interval, of ``n`` items."""

    value: float
    ci95: tuple[float, float]
    n: int


def score_pairs(model: SpeechLM, pairs: Sequence[Pair]) -> Iterator[Scored]:
    """Score pairs in order; one that cannot be is told, not left out."""
    for first in range(0, len(pairs), PAIRS_AT_ONCE):
        portion = pairs[first : first + PAIRS_AT_ONCE]
        heard: list[tuple[Pair, list[Units]]] = []
        failed: dict[int, str] = {}
        for index, pair in enumerate(portion):
            try:
                heard.append((pair, _units(model, pair)))
            except (SpeechLMError, OSError) as error:
                failed[index] = str(error)
        scored = iter(_score_units(model, heard))
        for index, pair in enumerate(portion):
            if index in failed:
                yield Scored(pair=pair, scores={}, error=failed[index])
            else:
                yield next(scored)


def _units(model: SpeechLM, pair: Pair) -> list[Units]:
    rate = model.tokenizer.sample_rate
    return [model.encode(load_audio(path, rate), rate) for path in (pair.positive, pair.negative)]


def _score_units(model: SpeechLM, heard: Sequence[tuple[Pair, list[Units]]]) -> list[Scored]:
    if not heard:
        return []
    try:
        found = score_recordings(model.lm, [units for _, both in heard for units in both])
    except InputError as error:
        if len(heard) == 1:
            return [Scored(pair=heard[0][0], scores={}, error=str(error))]
        half = len(heard) // 2
        return _score_units(model, heard[:half]) + _score_units(model, heard[half:])
    return [
        Scored(pair=pair, scores=_variants(model, both, found[2 * index : 2 * index + 2]))
        for index, (pair, both) in enumerate(heard)
    ]


def _variants(
    model: SpeechLM, units: Sequence[Units], found: Sequence[Likelihood]
) -> dict[str, tuple[float, float]]:
    positive, negative = found
    spans = differing(units[0].expand().codes, units[1].expand().codes)
    local = (0.0, 0.0)  # of recordings that are the same in units
    if spans is not None:
        totals = []
        for one, likelihood, (start, stop) in zip(units, found, spans, strict=True):
            span_s = start / one.frame_rate, stop / one.frame_rate
            totals.append(score_span(model.lm, one, likelihood, span_s).total)
        local = totals[0], totals[1]
    return {
        "sum": (positive.total, negative.total),
        "per_unit": (positive.per_unit, negative.per_unit),
        "per_second": (positive.per_second, negative.per_second),
        "localised": local,
    }


def differing(first: Tensor, second: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Where two recordings differ, frames from and to in each; None where they do not.

    Args:
        first: Units int64 [K, F].
        second: Units int64 [K, F'].

    Returns:
        What is left between the longest beginning and the longest end that they share. At least
        a frame each: where one only has something more, the frame after it stands for the other.
    """
    least = min(first.shape[1], second.shape[1])
    same = (first[:, :least] == second[:, :least]).all(dim=0)
    before = int(same.long().cumprod(0).sum())
    if before == first.shape[1] == second.shape[1]:
        return None
    ends = first.flip(1)[:, :least] == second.flip(1)[:, :least]
    after = int(ends.all(dim=0).long().cumprod(0).sum())
    after = min(after, least - before)
    if before + after == least:
        # Nothing of the shorter one is left: take a frame that both have beside it.
        if after:
            after -= 1
        elif before:
            before -= 1
    return (before, first.shape[1] - after), (before, second.shape[1] - after)


def figure(scored: Sequence[Scored], variant: str, seed: int) -> Figure:
    """The mean over items, of each the mean over its pairs; at least one pair.

    The interval is Wilson's where each item is right or wrong, else a bootstrap over items.
    """
    items: dict[str, list[float]] = defaultdict(list)
    for one in scored:
        items[item_name(one.pair)].append(one.credit(variant))
    means = [sum(credits) / len(credits) for credits in items.values()]
    value = sum(means) / len(means)
    if set(means) <= {0.0, 1.0}:
        low, high = wilson_interval(round(sum(means)), len(means))
    else:
        low, high = bootstrap_interval(
            [[mean, 1.0] for mean in means], lambda sums: sums[:, 0] / sums[:, 1], seed=seed
        )
    return Figure(value=100 * value, ci95=(100 * low, 100 * high), n=len(means))


def item_name(pair: Pair) -> str:
    """What pairs share that count as one item."""
    return "/".join(part for part in (pair.type, pair.subtype, pair.id) if part)


def subsets(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Parts of the data by type and by how frequent words are, and all of it under ``""``."""
    parts: dict[str, list[Scored]] = {"": list(scored)}
    for one in scored:
        if one.pair.type:
            parts.setdefault(f"type={one.pair.type}", []).append(one)
        if one.pair.frequency:
            parts.setdefault(f"frequency={band(one.pair.frequency)}", []).append(one)
            if band(one.pair.frequency) != "oov":
                parts.setdefault("in-vocabulary", []).append(one)
    if len([name for name in parts if name.startswith("type=")]) == 1:
        parts = {name: part for name, part in parts.items() if not name.startswith("type=")}
    return parts


def band(frequency: str) -> str:
    """How often a word comes in training data, as ZeroSpeech 2021 groups it."""
    if not frequency.isdigit() or int(frequency) == 0:
        return "oov"
    for low, high in BANDS:
        if low <= int(frequency) <= high:
            return f"{low}-{high}"
    return f">{BANDS[-1][1]}"
