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

Where a pair has a prompt, only what comes after it counts; ``answer_…`` are the same of what is
read as an answer to the prompt, not as its continuation.

A pair counts 1 where the right one is more probable, a half where both are equally so; items
with several pairs, such as a word in several voices, count once. Chance is 50.

Sources:
    Nguyen et al. 2020 (ZeroSpeech 2021), arXiv:2011.11588; Hassid et al. 2023 (TWIST),
    arXiv:2305.13009; arXiv:2601.06329 (localised).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.data.pool import one_thread
from speechlm.errors import InputError, SpeechLMError
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.pairs import Pair
from speechlm.evaluation.tasks.readings import Reading, read_members
from speechlm.model.likelihood import Likelihood, score, score_span
from speechlm.units import Units

Readings = Mapping[str, tuple[Reading, Reading]]

VARIANTS = ("sum", "per_unit", "per_second", "localised")
PAIRS_AT_ONCE = 64
BANDS = {"1-5": 5, "6-20": 20, "21-100": 100}
"""Of ZeroSpeech 2021: how often a word comes in the training data, each below its number; ``oov``
is less than once. As published, 5 is in ``6-20`` whatever that is called."""


def score_pairs(model: SpeechLM, pairs: Sequence[Pair]) -> Iterator[Item]:
    """Score pairs in order; one that cannot be is told, not left out.

    An item's ``note`` holds both log-likelihoods of each variant.
    """
    for first in range(0, len(pairs), PAIRS_AT_ONCE):
        portion = pairs[first : first + PAIRS_AT_ONCE]
        read: list[tuple[Pair, Readings]] = []
        failed: dict[int, str] = {}
        for index, pair in enumerate(portion):
            try:
                with one_thread():
                    read.append((pair, read_members(model, pair)))
            except (SpeechLMError, OSError) as error:
                failed[index] = str(error)
        scored = iter(_score_read(model, read))
        for index, pair in enumerate(portion):
            if index in failed:
                yield make_item(pair, {}, failed[index])
            else:
                yield next(scored)


def _score_read(model: SpeechLM, read: Sequence[tuple[Pair, Readings]]) -> list[Item]:
    if not read:
        return []
    members = [one for _, readings in read for both in readings.values() for one in both]
    try:
        found = score(
            model.lm, [one.sequence for one in members], spans=[one.span for one in members]
        )
    except InputError as error:
        if len(read) == 1:
            return [make_item(read[0][0], {}, str(error))]
        half = len(read) // 2
        return _score_read(model, read[:half]) + _score_read(model, read[half:])
    counted = iter([one.counted(each) for one, each in zip(members, found, strict=True)])
    items = []
    for pair, readings in read:
        scores: dict[str, tuple[float, float]] = {}
        for begins, both in readings.items():
            variants = _variants(model, both, (next(counted), next(counted)))
            scores |= {begins + name: values for name, values in variants.items()}
        items.append(make_item(pair, scores))
    return items


def make_item(pair: Pair, scores: Mapping[str, tuple[float, float]], error: str = "") -> Item:
    credits = {
        name: 50.0 if pos == neg else 100.0 * (pos > neg) for name, (pos, neg) in scores.items()
    }
    return Item(
        # Words in several voices, sentences of a kind that are numbered anew in each kind.
        id="/".join(part for part in (pair.type, pair.subtype, pair.id) if part),
        figures={name: (credit, 1.0) for name, credit in credits.items()},
        subsets=_subsets(pair),
        note={
            "positive": str(pair.positive),
            "negative": str(pair.negative),
            "prompt": str(pair.prompt or ""),
            "voice": pair.voice,
            "scores": dict(scores),
        },
        error=error,
    )


def _subsets(pair: Pair) -> tuple[str, ...]:
    """By type, and by how frequent a word is."""
    found = []
    if pair.type:
        found.append(f"type={pair.type}")
    if pair.frequency:
        found.append(f"frequency={band(pair.frequency)}")
        if band(pair.frequency) != "oov":
            found.append("in-vocabulary")
    return tuple(found)


def _variants(
    model: SpeechLM, read: tuple[Reading, Reading], found: tuple[Likelihood, Likelihood]
) -> dict[str, tuple[float, float]]:
    positive, negative = found
    scores = {
        "sum": (positive.total, negative.total),
        "per_unit": (positive.per_unit, negative.per_unit),
    }
    if positive.duration_s is not None and negative.duration_s is not None:
        scores["per_second"] = (positive.per_second, negative.per_second)
    if read[0].units is not None and read[1].units is not None:
        scores["localised"] = _localised(model, (read[0].units, read[1].units), found)
    return scores


def _localised(
    model: SpeechLM, units: tuple[Units, Units], found: tuple[Likelihood, Likelihood]
) -> tuple[float, float]:
    spans = differing(units[0].expand().codes, units[1].expand().codes)
    if spans is None:
        return 0.0, 0.0
    positive, negative = (
        score_span(model.lm, one, likelihood, (start / one.frame_rate, stop / one.frame_rate)).total
        for one, likelihood, (start, stop) in zip(units, found, spans, strict=True)
    )
    return positive, negative


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


def band(frequency: str) -> str:
    """How often a word comes in training data, as ZeroSpeech 2021 groups it."""
    if not frequency.isdigit() or int(frequency) == 0:
        return "oov"
    return next((name for name, top in BANDS.items() if int(frequency) < top), ">100")
