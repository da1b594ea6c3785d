"""What a text that was heard says of the model that spoke it, and figures of many such texts.

Each figure is there for a *text* by its name: what the model said, what was really said, or some
other, see :mod:`speechlm.evaluation.tasks.generation`.

Sources:
    Lakhotia et al. 2021 (GSLM), arXiv:2102.01192; Maimon et al. 2025 (slamkit), arXiv:2502.15814.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from speechlm.data.corpus import Recording
from speechlm.evaluation.diversity import auto_bleu_gslm, auto_bleu_slamkit, self_bleu
from speechlm.evaluation.intervals import bootstrap_interval, mean_interval, ratio_interval
from speechlm.evaluation.recognizer import WordModel, perplexity
from speechlm.evaluation.tasks.items import RIGHT, WRONG, Figure, Item
from speechlm.evaluation.tradeoff import tradeoff

Point = tuple[float, float, float, float]
"""Of a recording: self-BLEU, auto-BLEU, mean NLL, and 1."""
PERCENTILES = {"median": 50.0, "p10": 10.0, "p90": 90.0}


def words_of(text: str) -> list[str]:
    """The words of a text of whatever language, in small letters, without punctuation."""
    return re.findall(r"\w+(?:'\w+)*", text.lower().replace("\u2019", "'"))


def known_words(recording: Recording, start_s: float, end_s: float) -> list[str]:
    """The words whose middle lies between two times; none where the corpus does not say when."""
    return [
        word
        for each in recording.words or ()
        if start_s <= (each.start_s + each.end_s) / 2 < end_s
        for word in words_of(each.word)
    ]


def text_figures(
    name: str, text: str, text_lm: WordModel
) -> tuple[dict[str, tuple[float, float]], tuple[float, int]]:
    """What one text adds to the figures ``NAME/...``, and its log-probability and tokens."""
    words = words_of(text)
    figures = {f"{name}/empty": WRONG if words else RIGHT, f"{name}/words": (len(words), 1.0)}
    if not words:
        return figures, (0.0, 0)
    total, count = text_lm.log_prob(text)
    if count:
        figures[f"{name}/nll-per-utterance"] = (-total / count, 1.0)
        figures[f"{name}/nll-per-token"] = (-total, float(count))
        figures[f"{name}/perplexity-gslm-mean"] = (perplexity(total, count), 1.0)
    figures[f"{name}/auto-bleu-gslm"] = (100 * auto_bleu_gslm(words), 1.0)
    figures[f"{name}/auto-bleu-slamkit"] = (100 * auto_bleu_slamkit(words), 1.0)
    return figures, (total, count)


def figures_of_texts(
    items: Sequence[Item], texts: Sequence[str], seed: int
) -> Iterator[tuple[str, Figure]]:
    """Figures that are no sum by a count, each with its variant.

    Intervals are bootstraps over recordings. For self-BLEU and VERT each keeps its BLEU with all
    others: were the others drawn too, some would meet their own copies.
    """
    good = [item for item in items if not item.error]
    for text in texts:
        nlls = [
            item.figures[f"{text}/nll-per-utterance"][0]
            for item in good
            if f"{text}/nll-per-utterance" in item.figures
        ]
        if nlls:
            low, high = mean_interval(nlls, seed=seed)
            yield (
                f"{text}/perplexity-slamkit",
                _figure(np.exp(np.mean(nlls)), (np.exp(low), np.exp(high)), len(nlls)),
            )
            rows = [
                item.figures[f"{text}/nll-per-token"]
                for item in good
                if f"{text}/nll-per-token" in item.figures
            ]
            sums = np.sum(rows, axis=0)
            low, high = ratio_interval(rows, seed=seed)
            yield (
                f"{text}/perplexity-pooled",
                _figure(np.exp(sums[0] / sums[1]), (np.exp(low), np.exp(high)), len(rows)),
            )
            for name, percent in PERCENTILES.items():
                value, ci95 = percentile_interval(np.exp(nlls), percent, seed=seed)
                yield f"{text}/perplexity-gslm-{name}", _figure(value, ci95, len(nlls))
        values = np.array(list(points(good, text).values()))
        if len(values) > 1:
            selfs = 100 * values[:, 0]
            found = _figure(selfs.mean(), mean_interval(selfs.tolist(), seed=seed), len(values))
            yield f"{text}/self-bleu2", found
            interval = bootstrap_interval(values.tolist(), _vert, seed=seed)
            found = _figure(_vert(values.sum(axis=0)[None])[0], interval, len(values))
            yield f"{text}/vert", found
    for name in ("heard", "text"):
        variant = f"continuation-bleu2-{name}"
        scores = [item.figures[variant][0] for item in good if variant in item.figures]
        if scores:
            value, ci95 = percentile_interval(np.array(scores), 50.0, seed=seed)
            yield f"{variant}-median", _figure(value, ci95, len(scores))


def percentile_interval(
    values: npt.NDArray[np.float64], percent: float, *, seed: int, num_resamples: int = 1000
) -> tuple[float, tuple[float, float]]:
    """A percentile of values [N] and its 95 % bootstrap interval."""
    draws = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    low, high = np.quantile(np.percentile(values[draws], percent, axis=1), [0.025, 0.975])
    return float(np.percentile(values, percent)), (float(low), float(high))


def curve_figures(
    oracle: Mapping[str, Point],
    sweep: Sequence[Mapping[str, Point]],
    seed: int,
) -> Iterator[tuple[str, float | None, tuple[float, float] | None, str]]:
    """Figures of a curve: variant, value, interval, and why there is none.

    Args:
        oracle: Of recorded speech: self-BLEU, auto-BLEU, mean NLL and 1, by recording.
        sweep: The same of each temperature. A recording of which there is none has no words.
        seed: Of the bootstrap over recordings, each with all its temperatures.
    """
    names = sorted(set(oracle).union(*sweep))
    nothing = (0.0, 0.0, 0.0, 0.0)
    rows = [
        [number for part in (oracle, *sweep) for number in part.get(name, nothing)]
        for name in names
    ]
    variants = ("perplexity-at-oracle-vert", "vert-at-oracle-perplexity", "area")
    if not rows:
        for variant in variants:
            yield variant, None, None, "no words were heard"
        return
    values = _curves(np.sum(rows, axis=0)[None])[0]
    for column, (variant, value) in enumerate(zip(variants, values, strict=True)):
        if np.isnan(value):
            yield variant, None, None, "the temperatures do not reach as far as recorded speech"
            continue
        low, high = bootstrap_interval(rows, partial(_one_of_curves, column), seed=seed)
        if np.isnan(low + high):
            why = "no interval: with some draws of recordings the curve does not reach so far"
            yield variant, float(value), None, why
        else:
            yield variant, float(value), (low, high), ""


def _one_of_curves(column: int, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return _curves(sums)[:, column]


def _curves(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.array([_curve(row) for row in sums])
    return found


def _curve(sums: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Of sums [4 * (1 + temperatures)], the oracle's first; VERT in percent, but for the area."""
    parts = sums.reshape(-1, 4)
    if not parts[:, 3].all():  # somewhere no word is heard at all
        return np.nan, np.nan, np.nan
    means = parts[:, :3] / parts[:, 3:]
    verts, perplexities = np.sqrt(means[:, 0] * means[:, 1]), np.exp(means[:, 2])
    found = tradeoff(
        verts[1:].tolist(),
        perplexities[1:].tolist(),
        oracle_vert=verts[0],
        oracle_perplexity=perplexities[0],
    )
    return found.perplexity_at_vert, 100 * found.vert_at_perplexity, found.area


def points(items: Sequence[Item], text: str) -> dict[str, Point]:
    """Self-BLEU, auto-BLEU, mean NLL and 1, by the recordings of which words are heard."""
    said: dict[str, tuple[list[str], float]] = {}
    for item in items:
        nll = item.figures.get(f"{text}/nll-per-utterance")
        if not item.error and nll is not None:
            said[item.id] = words_of(item.note["transcripts"][text]), nll[0]
    if len(said) < 2:
        return {}
    selfs = self_bleu([words for words, _ in said.values()])
    return {
        name: (one, auto_bleu_gslm(words), nll, 1.0)
        for (name, (words, nll)), one in zip(said.items(), selfs, strict=True)
    }


def _vert(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """In percent, of sums of points [R, 4]."""
    found: npt.NDArray[np.float64] = 100 * np.sqrt(sums[:, 0] * sums[:, 1]) / sums[:, 3]
    return found


def _figure(value: float, ci95: tuple[float, float], n: int) -> Figure:
    return Figure(value=float(value), ci95=(float(ci95[0]), float(ci95[1])), n=n)
