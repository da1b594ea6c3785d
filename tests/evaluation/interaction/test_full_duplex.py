"""Full-Duplex-Bench's figures, by hand and against slow counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.evaluation.interaction.full_duplex import (
    Word,
    backchannel_histogram,
    find_backchannels,
    join_spans,
    parse_rating,
    rating_question,
    released_backchannels,
    released_jsd,
    released_responses,
    released_spans,
    released_stops,
    response_latency,
    stop_latency,
    takes_turn,
    timing_jsd,
)
from speechlm.evaluation.interaction.turns import Span

GRID = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)), max_size=5)


def words(*times: tuple[float, float | None]) -> list[Word]:
    return [Word("word", start, end) for start, end in times]


def spans(drawn: list[tuple[int, int]], pause_s: float) -> list[Span]:
    return join_spans([(start / 4, (start + length) / 4) for start, length in drawn], pause_s)


@pytest.mark.parametrize(
    ("said", "turn"),
    [
        (words(), False),
        (words((1.0, 1.4), (1.5, 1.9)), False),
        (words((1.0, 2.0)), True),
        (words((0.0, 0.1), (0.2, 0.3), (0.4, 0.5)), False),
        (words((0.0, 0.1), (0.2, 0.3), (0.4, 0.5), (0.6, 0.7)), True),
        (words((0.0, 0.5), (0.9, None)), False),
        (words((0.0, 0.5), (1.0, None)), True),
    ],
)
def test_a_turn_lasts_a_second_or_has_four_words(said: list[Word], turn: bool) -> None:
    assert takes_turn(said) is turn


def test_published_the_last_stretch_decides_and_turns_count_as_backchannels() -> None:
    turn_then_hum = [(1.0, 2.5), (5.0, 5.4)]
    said = words((5.1, 5.3))
    released, found = (judge(turn_then_hum, said) for judge in BOTH)
    assert (released.takes_turn, released.spans) == (False, tuple(turn_then_hum))
    assert (found.takes_turn, found.spans) == (True, ((5.0, 5.4),))
    long_last = [(1.0, 1.4), (2.0, 5.1), (7.0, 7.4)]
    released, found = (judge(long_last, []) for judge in BOTH)
    assert (released.takes_turn, released.spans) == (True, ((1.0, 1.4),))
    assert (found.takes_turn, found.spans) == (True, ((1.0, 1.4), (7.0, 7.4)))
    assert not any(judge([], []).takes_turn for judge in BOTH)


BOTH = (released_backchannels, find_backchannels)


@pytest.mark.parametrize("count", [2, 3])
def test_a_backchannel_is_of_two_words_at_most(count: int) -> None:
    said = words(*((0.2 * place, 0.2 * place + 0.1) for place in range(count)))
    for judge in BOTH:
        assert judge([(0.0, 0.9)], said).takes_turn is (count == 3)


def test_published_spans_are_rounded_to_tenths_within_the_recording() -> None:
    assert released_spans([(0.04, 0.16), (1.26, 1.98)], 1.99) == [(0.0, 0.2), (1.3, 1.99)]


def test_divergence_of_hand_made_histograms() -> None:
    people = [1.0, 0, 0, 0, 0]
    assert backchannel_histogram([(0.0, 0.1), (0.3, 0.5)], 0.9).tolist() == [1, 1, 1, 0, 0]
    assert timing_jsd([(0.0, 0.1)], 0.9, people) == pytest.approx(0, abs=1e-12)
    assert timing_jsd([(0.65, 0.7)], 0.9, people) == pytest.approx(1)
    # Half of it where people are: (1/2) log2 (4/3) + (1/4) log2 (2/3) + 1/4.
    half = 0.5 * (0.5 * math.log2(0.5 / 0.75) + 0.5) + 0.5 * math.log2(1 / 0.75)
    assert timing_jsd([(0.0, 0.1), (0.65, 0.7)], 0.9, people) == pytest.approx(half)
    assert timing_jsd([], 0.9, people) == released_jsd([], 0.9, people) == 1
    assert released_jsd([(0.65, 0.7)], 0.9, people) == pytest.approx(
        math.sqrt(math.log(2)), abs=1e-4
    )


@settings(deadline=None)
@given(GRID.filter(bool), st.lists(st.floats(0.01, 1), min_size=2, max_size=40))
def test_divergence_is_scipys(drawn: list[tuple[int, int]], people: list[float]) -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    some, duration_s = spans(drawn, 0.0), 20.0
    counts = np.zeros(int(duration_s / 0.2) + 1)
    for start, end in some:
        for place in range(int(start / 0.2), int(end / 0.2) + 1):
            if place < len(counts):
                counts[place] += 1
    shares = np.interp(np.linspace(0, 1, len(counts)), np.linspace(0, 1, len(people)), people)
    expected = distance.jensenshannon(counts + 1e-10, shares)
    assert released_jsd(some, duration_s, people) == pytest.approx(expected, abs=1e-7)
    proper = distance.jensenshannon(counts, shares, base=2) ** 2
    assert timing_jsd(some, duration_s, people) == pytest.approx(proper, abs=1e-9)
    assert 0 <= timing_jsd(some, duration_s, people) <= 1


def test_who_talks_on_and_who_answers_when() -> None:
    user, model = [(0.0, 2.0), (4.0, 6.0)], [(2.5, 4.7), (6.9, 8.0)]
    assert released_stops(user, model) == [(4.0, 4.7)]
    assert released_responses(user, model) == [(2.0, 2.5), (6.0, 6.9)]
    assert stop_latency((4.0, 6.0), model) == pytest.approx(0.7)
    assert response_latency((4.0, 6.0), model) == pytest.approx(0.9)
    assert stop_latency((5.0, 6.0), model) is None
    assert response_latency((4.0, 7.0), model) is None


@given(GRID, GRID)
def test_overlap_is_what_frames_say(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    user, model = spans(first, 0.6), spans(second, 0.5)
    active = [
        {frame for start, end in side for frame in range(round(4 * start), round(4 * end))}
        for side in (user, model)
    ]
    overlap = sum(end - start for start, end in released_stops(user, model))
    assert overlap == pytest.approx(len(active[0] & active[1]) / 4)
    for end, begin in released_responses(user, model):
        assert end in {stop for _, stop in user}
        assert begin in {start for start, _ in model}
        between = {round(4 * stop) for _, stop in user if end < stop < begin}
        assert not between
        assert not any(end < start < begin for start, _ in model)


def test_joined_spans_are_farther_apart_than_the_pause() -> None:
    assert join_spans([(3.0, 4.0), (0.0, 1.0), (1.5, 2.0)], 0.5) == [(0.0, 2.0), (3.0, 4.0)]
    assert join_spans([], 0.5) == []


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("It fits.\nRating: 4", 4),
        ("It fits. I would rate the response as 5.", 5),
        ("Rating: 2/5", 2),
        ("A first rating: 1\nRating: **3**", 3),
        ("Rating: 4.5", None),
        ("Rating: 7", None),
        ("I cannot say.", None),
    ],
)
def test_ratings_are_read_or_not(answer: str, rating: int | None) -> None:
    assert parse_rating(answer) == rating


def test_a_question_to_a_judge_holds_all_that_was_said() -> None:
    asked = rating_question("Which books?", "No, films.", "Try Metropolis.")
    assert all(text in asked for text in ("Which books?", "No, films.", "Try Metropolis."))
    assert parse_rating(f"{asked}\nIt fits.\nRating: 4") == 4
