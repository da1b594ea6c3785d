"""Figures of texts, against slow formulas; their intervals, against many draws."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pocketsphinx")

from speechlm.data.corpus import Recording, Word
from speechlm.evaluation.diversity import auto_bleu_gslm, bleu, self_bleu
from speechlm.evaluation.recognizer import TrigramModel
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.text_figures import (
    Point,
    curve_figures,
    figures_of_texts,
    known_words,
    percentile_interval,
    text_figures,
    words_of,
)
from speechlm.evaluation.tradeoff import tradeoff

TEXTS = [
    "please enter your password",
    "he was not an ill disposed young man",
    "enter your phone number please please enter your phone number",
    "the number you have dialed is not in service",
]


def items_of(texts: list[str]) -> list[Item]:
    text_lm = TrigramModel()
    found = []
    for number, text in enumerate(texts):
        figures, _ = text_figures("alone", text, text_lm)
        found.append(Item(id=str(number), figures=figures, note={"transcripts": {"alone": text}}))
    return found


def test_repeating_words_lowers_perplexity_and_raises_auto_bleu() -> None:
    plain, repeated = items_of(["a dog ran over the old bridge", "the the the the the the the"])
    key = "alone/nll-per-utterance"
    assert repeated.figures[key][0] < plain.figures[key][0]
    for name in ("auto-bleu-gslm", "auto-bleu-slamkit"):
        assert repeated.figures[f"alone/{name}"][0] > plain.figures[f"alone/{name}"][0] + 50


def test_each_figure_is_what_its_paper_says() -> None:
    items = items_of(TEXTS)
    text_lm = TrigramModel()
    scores = [text_lm.log_prob(text) for text in TEXTS]
    nlls = [-total / count for total, count in scores]
    perplexities = [math.exp(nll) for nll in nlls]
    words = [text.split() for text in TEXTS]
    selfs = np.mean(self_bleu(words))
    autos = np.mean([auto_bleu_gslm(each) for each in words])
    found = dict(figures_of_texts(items, ["alone"], seed=0))
    expected = {
        "perplexity-slamkit": math.exp(sum(nlls) / 4),
        "perplexity-pooled": math.exp(
            -sum(total for total, _ in scores) / sum(count for _, count in scores)
        ),
        "perplexity-gslm-median": np.median(perplexities),
        "perplexity-gslm-p10": np.percentile(perplexities, 10),
        "perplexity-gslm-p90": np.percentile(perplexities, 90),
        "self-bleu2": 100 * selfs,
        "vert": 100 * math.sqrt(selfs * autos),
    }
    assert {name.removeprefix("alone/"): one.value for name, one in found.items()} == (
        pytest.approx(expected)
    )
    for name, one in found.items():
        assert one.ci95[0] <= one.value <= one.ci95[1], name
        assert one.n == 4
    mean = np.mean([item.figures["alone/perplexity-gslm-mean"][0] for item in items])
    assert mean == pytest.approx(np.mean(perplexities))


def test_a_text_without_words_counts_as_empty_alone() -> None:
    figures, scored = text_figures("alone", " ... ", TrigramModel())
    assert figures == {"alone/empty": (100.0, 1.0), "alone/words": (0, 1.0)}
    assert scored == (0.0, 0)
    assert list(figures_of_texts([Item(id="a", figures=figures)], ["alone"], seed=0)) == []


def test_what_was_really_said_foretells_itself() -> None:
    words = (Word("One", 0.0, 0.4), Word("two,", 0.4, 0.9), Word("Three!", 0.9, 1.4))
    recording = Recording(id="a", source="a", words=words, audio=Path("a"))
    truth = known_words(recording, 0.6, 2.0)
    assert truth == ["two", "three"]
    assert bleu(truth, [words_of("two three")]) == pytest.approx(1.0)
    assert known_words(Recording(id="b", source="b", text="one"), 0.0, 2.0) == []


def test_words_of_other_languages_are_words() -> None:
    assert words_of("Привет, world\u2019s end") == ["привет", "world's", "end"]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = {"perplexity-slamkit": 0, "perplexity-gslm-median": 0}
    truths = {"perplexity-slamkit": math.exp(5.0), "perplexity-gslm-median": math.exp(5.0)}
    for _ in range(100):
        items = [
            Item(
                id=str(number),
                figures={
                    "alone/nll-per-utterance": (nll, 1.0),
                    "alone/nll-per-token": (10 * nll, 10.0),
                },
                note={"transcripts": {"alone": ""}},
            )
            for number, nll in enumerate(draw.normal(5.0, 0.7, 40))
        ]
        found = dict(figures_of_texts(items, ["alone"], seed=0))
        for name in held:
            low, high = found[f"alone/{name}"].ci95
            held[name] += low <= truths[name] <= high
    assert all(86 <= count <= 100 for count in held.values()), held


def test_a_percentile_is_numpys() -> None:
    value, (low, high) = percentile_interval(np.arange(101.0), 10.0, seed=3)
    assert value == 10.0
    assert low < 10.0 < high


def points(shares: float, perplexity: float, count: int = 30) -> dict[str, Point]:
    draw = np.random.default_rng(round(100 * shares))
    jitter = draw.uniform(0.9, 1.1, count)
    return {
        str(n): (shares * one, shares, math.log(perplexity), 1.0) for n, one in enumerate(jitter)
    }


def test_a_curve_has_the_figures_of_its_means_with_intervals() -> None:
    sweep = [points(0.30, 60.0), points(0.14, 180.0), points(0.05, 400.0)]
    oracle = points(0.11, 75.0)
    verts = [
        math.sqrt(np.mean([each[0] for each in part.values()]) * next(iter(part.values()))[1])
        for part in (oracle, *sweep)
    ]
    expected = tradeoff(verts[1:], [60.0, 180.0, 400.0], oracle_vert=verts[0], oracle_perplexity=75)
    found = {variant: (value, ci) for variant, value, ci, _ in curve_figures(oracle, sweep, 0)}
    assert found["perplexity-at-oracle-vert"][0] == pytest.approx(expected.perplexity_at_vert)
    assert found["vert-at-oracle-perplexity"][0] == pytest.approx(100 * expected.vert_at_perplexity)
    assert found["area"][0] == pytest.approx(expected.area)
    for value, ci95 in found.values():
        assert ci95 is not None
        assert value is not None
        assert ci95[0] < value < ci95[1]


def test_a_curve_that_does_not_reach_says_so() -> None:
    sweep = [points(0.30, 60.0), points(0.14, 180.0)]
    rows = list(curve_figures(points(0.02, 75.0), sweep, 0))
    assert [value is None for _, value, _, _ in rows] == [True, False, True]
    assert "do not reach" in rows[0][3]
    assert [value for _, value, _, _ in curve_figures({}, [{}, {}], 0)] == [None] * 3
