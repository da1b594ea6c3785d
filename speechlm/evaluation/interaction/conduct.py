"""How a model behaves in dialogues whose truth is known: what it does at every moment that counts.

A moment is one of five. After a *question* it should speak, within a *pause* of the user's and
after a *remark* it should not; through a *backchannel* it should speak on, and once *interrupted*
fall silent. Moments that its own earlier doing took away (nobody can be interrupted who does not
speak) are none. So each kind gives a share of right ones over independent moments, which
:func:`speechlm.evaluation.intervals.wilson_interval` and the paired tests of
:mod:`speechlm.evaluation.significance` take as they are.

The truth is what :func:`speechlm.data.events.read_events` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from speechlm.data.events import Event
from speechlm.evaluation.interaction.full_duplex import MODEL_PAUSE_S, join_spans
from speechlm.evaluation.interaction.turns import Span

Situation = Literal["question", "pause", "remark", "backchannel", "interruption"]
SITUATIONS: tuple[Situation, ...] = ("question", "pause", "remark", "backchannel", "interruption")
ANSWER_S = 1.0
"""Who has not begun so long after a question has not taken the turn."""
STOP_S = 0.5
"""Who still speaks so long after being cut into has not let themselves be stopped."""
GO_ON_S = 0.3
"""Who goes on after a back-channel speaks so long beyond it at least."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that a model did rightly or not."""

    situation: Situation
    at_s: float
    right: bool
    latency_s: float | None = None
    """From the end of a question to the answer, or from the cut to silence; None of others."""


def find_moments(events: Sequence[Event], spans: Sequence[Span]) -> Iterator[Moment]:
    """What a model did in a dialogue.

    Args:
        events: What the user does, and when; what the model did there is how it should be.
        spans: When the model that is looked at speaks, s, as
            :func:`speechlm.evaluation.interaction.voice_activity.speech_spans` finds it.
    """
    said = join_spans(spans, MODEL_PAUSE_S)
    turns = [event for event in events if event.kind == "turn"]
    for place, event in enumerate(turns):
        if event.speaker == "model":
            continue
        following = turns[place + 1] if place + 1 < len(turns) else None
        if following is not None and following.speaker == "model":
            yield from _after_question(event.end_s, said)
        elif not _cuts_in(event, events):
            until = following.start_s if following is not None else event.end_s + ANSWER_S
            if _speaking(event.start_s, said) is None:
                silent = _begun(event.start_s, until, said) is None
                yield Moment("remark", event.end_s, silent)
    for event in events:
        if event.kind == "pause" and _speaking(event.start_s, said) is None:
            silent = _begun(event.start_s, event.end_s, said) is None
            yield Moment("pause", event.start_s, silent)
        elif event.kind == "backchannel":
            spoken = _speaking(event.start_s, said)
            # Who was about to end has nothing to go on with.
            if spoken is not None and _goes_on(event, turns):
                yield Moment("backchannel", event.start_s, spoken[1] > event.end_s + GO_ON_S)
        elif event.kind == "interruption" and (spoken := _speaking(event.start_s, said)):
            waited = spoken[1] - event.start_s
            yield Moment("interruption", event.start_s, waited <= STOP_S, waited)


def _after_question(end_s: float, said: Sequence[Span]) -> Iterator[Moment]:
    if _speaking(end_s, said) is not None:
        # It spoke over the user's last words: whatever that answers, it is not the question.
        yield Moment("question", end_s, False)
        return
    start_s = _begun(end_s, end_s + ANSWER_S, said)
    latency_s = None if start_s is None else start_s - end_s
    yield Moment("question", end_s, start_s is not None, latency_s)


def _goes_on(event: Event, turns: Sequence[Event]) -> bool:
    """Whether the answer into which the user says something is meant to last."""
    return any(
        turn.speaker == "model"
        and turn.start_s < event.start_s
        and turn.end_s > event.end_s + 2 * GO_ON_S
        for turn in turns
    )


def _cuts_in(turn: Event, events: Sequence[Event]) -> bool:
    return any(e.kind == "interruption" and e.start_s == turn.start_s for e in events)


def _speaking(at_s: float, said: Sequence[Span]) -> Span | None:
    return next((span for span in said if span[0] < at_s < span[1]), None)


def _begun(from_s: float, until_s: float, said: Sequence[Span]) -> float | None:
    return next((start for start, _ in said if from_s <= start < until_s), None)
