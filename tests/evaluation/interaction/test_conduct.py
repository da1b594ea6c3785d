"""What a model does in a dialogue whose truth is known, moment by moment."""

import json

import pytest

from speechlm.data.events import Event, read_events
from speechlm.errors import CorpusError
from speechlm.evaluation.interaction.conduct import Moment, find_moments

QUESTION = [
    Event("turn", "user", 1.0, 3.0, "What comes after one?"),
    Event("pause", "user", 1.5, 2.0),
    Event("gap", "model", 3.0, 3.2),
    Event("turn", "model", 3.2, 4.0, "two"),
]
LIST = [
    Event("turn", "user", 1.0, 2.0, "Count."),
    Event("turn", "model", 2.2, 6.0, "one two three four"),
    Event("backchannel", "user", 3.5, 4.0, "Okay."),
]
CUT = [
    Event("turn", "user", 1.0, 2.0, "Count."),
    Event("turn", "model", 2.2, 4.2, "one two"),
    Event("turn", "user", 4.0, 5.0, "Stop, please."),
    Event("interruption", "user", 4.0, 4.2),
]
REMARK = [
    Event("turn", "user", 1.0, 2.0, "It is raining."),
    Event("turn", "user", 4.0, 5.0, "What comes after one?"),
    Event("turn", "model", 5.2, 6.0, "two"),
]


def found(events, spans) -> list[tuple[str, bool]]:
    return [(moment.situation, moment.right) for moment in find_moments(events, spans)]


@pytest.mark.parametrize(
    ("events", "spans", "expected"),
    [
        (QUESTION, [(3.2, 4.0)], [("question", True), ("pause", True)]),
        (QUESTION, [], [("question", False), ("pause", True)]),
        (QUESTION, [(4.3, 5.0)], [("question", False), ("pause", True)]),
        (QUESTION, [(1.7, 2.2), (3.4, 4.0)], [("question", True), ("pause", False)]),
        (QUESTION, [(2.8, 3.6)], [("question", False), ("pause", True)]),
        (QUESTION, [(1.2, 2.2)], [("question", False)]),
        (LIST, [(2.2, 6.0)], [("question", True), ("backchannel", True)]),
        (LIST, [(2.2, 3.9), (4.3, 6.0)], [("question", True), ("backchannel", True)]),
        (LIST, [(2.2, 3.7)], [("question", True), ("backchannel", False)]),
        (LIST, [(2.2, 3.0)], [("question", True)]),
        (CUT, [(2.2, 4.3)], [("question", True), ("interruption", True)]),
        (CUT, [(2.2, 6.0)], [("question", True), ("interruption", False)]),
        (CUT, [(2.2, 3.0)], [("question", True)]),
        (REMARK, [(5.3, 6.0)], [("remark", True), ("question", True)]),
        (REMARK, [(2.5, 3.0), (5.3, 6.0)], [("remark", False), ("question", True)]),
    ],
)
def test_moments_are_judged(events, spans, expected) -> None:
    assert found(events, spans) == expected


def test_latencies_count_from_the_question_and_from_the_cut() -> None:
    question, stopped = find_moments(CUT, [(2.3, 4.3)])
    assert question.latency_s == pytest.approx(0.3)
    assert stopped.latency_s == pytest.approx(0.3)


def test_doing_what_the_truth_does_is_right_at_every_moment() -> None:
    for events in (QUESTION, LIST, CUT, REMARK):
        spans = [
            (event.start_s, event.end_s)
            for event in events
            if (event.kind, event.speaker) == ("turn", "model")
        ]
        moments = list(find_moments(events, spans))
        assert moments
        assert all(isinstance(moment, Moment) and moment.right for moment in moments)


def test_events_are_read_by_dialogue(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    rows = [event.to_dict(name) for name in ("a", "b") for event in QUESTION]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_events(path) == {"a": QUESTION, "b": QUESTION}


def test_what_is_no_event_is_told_with_its_line(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(QUESTION[0].to_dict("a")) + '\n{"dialogue": "a"}\n')
    with pytest.raises(CorpusError, match=r"events.jsonl:2: expected an event of a dialogue"):
        read_events(path)
    with pytest.raises(CorpusError, match="the events cannot be read: No such file"):
        read_events(tmp_path / "none.jsonl")
