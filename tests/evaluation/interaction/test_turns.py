"""Turn statistics, on dialogues whose events are known, and against frames counted one by one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.evaluation.interaction.turns import (
    KINDS,
    Span,
    find_ipus,
    find_turns,
    pool,
    wasserstein,
)

FRAME_S = 0.05
ACTIVITY = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=6)


def spans(activity: list[tuple[int, int]]) -> list[Span]:
    return [(start * FRAME_S, (start + length) * FRAME_S) for start, length in activity]


def test_a_dialogue_whose_events_are_known() -> None:
    first = [(1.0, 2.0), (2.1, 3.0), (3.5, 4.0), (9.0, 10.0)]
    second = [(4.4, 6.0), (5.9, 7.0), (2.5, 2.8), (9.5, 11.0)]
    found = find_turns(first, second, 12.0)
    assert find_ipus(first) == [(1.0, 3.0), (3.5, 4.0), (9.0, 10.0)]
    assert found.durations_s["overlap"] == pytest.approx((0.3, 0.5))
    assert found.durations_s["pause"] == pytest.approx((0.5,))
    assert found.durations_s["gap"] == pytest.approx((0.4, 2.0))
    assert sorted(found.durations_s["ipu"]) == pytest.approx([0.3, 0.5, 1.0, 1.5, 2.0, 2.6])
    assert found.backchannels == 1
    assert found.transfers_s == pytest.approx((0.4, 2.0, -0.5))
    assert found.per_minute("gap") == pytest.approx(10)
    assert found.seconds_per_minute("gap") == pytest.approx(12)


@given(ACTIVITY, ACTIVITY)
def test_time_is_shared_out_whole(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    """Speech, overlap and inner silence, counted frame by frame."""
    found = find_turns(spans(first), spans(second), 5.0)
    active = []
    for one in (find_ipus(spans(first)), find_ipus(spans(second))):
        active.append(
            {
                frame
                for start, end in one
                for frame in range(round(start / FRAME_S), round(end / FRAME_S))
            }
        )
    totals = {kind: sum(found.durations_s[kind]) / FRAME_S for kind in KINDS}
    assert totals["ipu"] == pytest.approx(len(active[0]) + len(active[1]), abs=1e-6)
    assert totals["overlap"] == pytest.approx(len(active[0] & active[1]), abs=1e-6)
    anyone = active[0] | active[1]
    silent = set(range(min(anyone), max(anyone))) - anyone if anyone else set()
    assert totals["pause"] + totals["gap"] == pytest.approx(len(silent), abs=1e-6)


@given(ACTIVITY, ACTIVITY)
def test_it_does_not_matter_who_is_first(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    one = find_turns(spans(first), spans(second), 5.0)
    other = find_turns(spans(second), spans(first), 5.0)
    for kind in KINDS:
        assert sorted(one.durations_s[kind]) == pytest.approx(sorted(other.durations_s[kind]))
    assert one.backchannels == other.backchannels


def test_silence_of_less_than_a_fifth_of_a_second_is_within_an_ipu() -> None:
    assert find_ipus([(0.0, 1.0), (1.19, 2.0)]) == [(0.0, 2.0)]
    assert find_ipus([(0.0, 1.0), (1.2, 2.0)]) == [(0.0, 1.0), (1.2, 2.0)]


def test_a_corpus_is_of_all_its_minutes() -> None:
    talk = find_turns([(0.0, 1.0)], [(2.0, 3.0)], 60.0)
    silent = find_turns([], [], 180.0)
    assert pool([talk, silent]).per_minute("gap") == pytest.approx(0.25)
    assert math.isnan(find_turns([], [], 0.0).per_minute("gap"))


VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=20)


@settings(deadline=None)  # importing scipy takes seconds
@given(VALUES, VALUES)
def test_wasserstein_is_scipys(first: list[float], second: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.wasserstein_distance(first, second)
    assert wasserstein(first, second) == pytest.approx(expected, abs=1e-9)


@given(VALUES)
def test_the_same_is_not_apart(values: list[float]) -> None:
    assert wasserstein(values, values) == 0
    assert wasserstein(values, [value + 2 for value in values]) == pytest.approx(2)
    assert math.isnan(wasserstein(values, []))
