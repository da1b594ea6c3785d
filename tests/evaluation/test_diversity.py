"""Self-BLEU and both auto-BLEUs against what their papers' code does, step by step."""

from __future__ import annotations

import math
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlm.errors import InputError
from speechlm.evaluation.diversity import (
    auto_bleu_gslm,
    auto_bleu_slamkit,
    bleu,
    self_bleu,
    vert,
)

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def slow_gslm(words: list[str], most: int) -> list[float]:
    shares = []
    for n in range(1, most + 1):
        found = ngrams(words, n)
        again = [
            ngram in ngrams(words[:place], n) + ngrams(words[place + n :], n)
            for place, ngram in enumerate(found)
        ]
        shares.append(sum(again) / len(again))
    return shares


def slow_self_bleu(utterances: list[list[str]], index: int, mean: str) -> float:
    """BLEU-2 as nltk computes it, the length penalty left out."""
    others = [words for place, words in enumerate(utterances) if place != index]
    precisions = []
    for n in (1, 2):
        counts = Counter(ngrams(utterances[index], n))
        most = {
            ngram: max(Counter(ngrams(words, n))[ngram] for words in others) for ngram in counts
        }
        matched = sum(min(count, most[ngram]) for ngram, count in counts.items())
        precisions.append(matched / max(1, sum(counts.values())))
    if precisions[0] == 0:
        return 0.0
    if mean == "arithmetic":
        return sum(precisions) / 2
    return math.exp(sum(0.5 * math.log(p or sys.float_info.min) for p in precisions))


@given(WORDS)
def test_auto_bleu_of_gslm(words: list[str]) -> None:
    if len(words) <= 1:
        assert auto_bleu_gslm(words) == 0
        return
    one, two = slow_gslm(words, 2)
    assert auto_bleu_gslm(words, mean="arithmetic") == pytest.approx((one + two) / 2)
    assert auto_bleu_gslm(words) == pytest.approx(math.sqrt(one * two), abs=1e-12)


@given(WORDS, st.integers(1, 3))
def test_auto_bleu_of_slamkit(words: list[str], n: int) -> None:
    found = ngrams(words, n)
    again = [ngram in found[:i] + found[i + 1 :] for i, ngram in enumerate(found)]
    assert auto_bleu_slamkit(words, n) == pytest.approx(sum(again) / max(1, len(again)))


@given(st.lists(WORDS, min_size=2, max_size=6), st.sampled_from(["geometric", "arithmetic"]))
def test_self_bleu(utterances: list[list[str]], mean: str) -> None:
    found = self_bleu(utterances, mean=mean)  # type: ignore[arg-type]
    for index, value in enumerate(found):
        assert value == pytest.approx(slow_self_bleu(utterances, index, mean), abs=1e-12)


def test_the_two_auto_bleus_differ_where_repetitions_overlap() -> None:
    words = ["no", "no", "no"]
    assert auto_bleu_gslm(words, most=2, mean="arithmetic") == 0.5
    assert auto_bleu_slamkit(words) == 1.0


def test_repeating_oneself_raises_all() -> None:
    plain = ["please", "enter", "your", "password", "and", "press", "the", "pound", "key"]
    again = ["please", "enter", "please", "enter", "please", "enter", "your", "password"]
    assert auto_bleu_gslm(again) > auto_bleu_gslm(plain)
    assert auto_bleu_slamkit(again) > auto_bleu_slamkit(plain)
    assert self_bleu([plain, plain])[0] == pytest.approx(1.0)
    assert self_bleu([plain, ["quite", "other", "words"]])[0] == 0
    assert vert(0.25, 0.04) == pytest.approx(0.1)


def test_one_utterance_alone_has_no_self_bleu() -> None:
    with pytest.raises(InputError, match="expected two, got 1"):
        self_bleu([["a"]])


@given(WORDS.filter(lambda words: len(words) > 1), st.lists(WORDS, max_size=3))
def test_what_is_among_its_references_has_a_bleu_of_one(
    words: list[str], others: list[list[str]]
) -> None:
    assert bleu(words, [*others, words]) == pytest.approx(1.0)
    assert bleu(words, [["else"]]) == 0.0 == bleu(words, []) == bleu([], [words])


@given(st.lists(WORDS, min_size=2, max_size=4))
def test_self_bleu_is_bleu_with_all_others(utterances: list[list[str]]) -> None:
    expected = [
        bleu(words, utterances[:place] + utterances[place + 1 :])
        for place, words in enumerate(utterances)
    ]
    assert self_bleu(utterances) == pytest.approx(expected)
