"""Speech over an answer: a back-channel holds it for a moment, more than that ends it."""

from __future__ import annotations

import numpy as np
import pytest
from small_talk import (
    INTERRUPTION,
    MURMUR,
    QUESTION,
    RATE,
    Talk,
    settings,
    silence,
    speech,
)

pytest.importorskip("onnxruntime")

from speechlm.dialogue.messages import (
    Backchannel,
    Cancel,
    ClearInput,
    Commit,
    Committed,
    Configure,
    Hear,
    Respond,
    ResponseEnded,
    ResponseStarted,
    Sound,
    SpeechStarted,
    Truncate,
    TurnMeasured,
)
from speechlm.dialogue.settings import TurnSettings

LONG_S = 4.0


def answering(**turns: object) -> Talk:
    """An answer of four seconds has just begun."""
    talk = Talk(first=settings(max_answer_s=LONG_S, turns=TurnSettings(**turns)))  # type: ignore[arg-type]
    talk.ask()
    talk.until(lambda: bool(talk.all(Sound)))
    talk.hear(silence(0.2))
    return talk


def held(talk: Talk) -> bool:
    """Whether no sound comes, though there is some."""
    count = len(talk.all(Sound))
    talk.wait(0.5)
    return len(talk.all(Sound)) == count


def test_speech_holds_the_answer_at_its_onset_and_then_ends_it() -> None:
    talk = answering(backchannel_s=0.7)
    onset = talk.now
    talk.hear(speech(*INTERRUPTION)[: round(0.5 * RATE)])
    assert not talk.all(ResponseEnded)
    assert held(talk)
    talk.hear(speech(*INTERRUPTION)[round(0.5 * RATE) :])
    started, ended = talk.all(SpeechStarted)[1], talk.last(ResponseEnded)
    assert talk.events.index(started) < talk.events.index(ended)
    assert (ended.status, ended.reason) == ("cancelled", "turn_detected")
    assert talk.at[id(ended)] - onset < 0.5 + 0.7 + 0.2
    assert not talk.session.tickets
    assert not talk.all(Backchannel)
    figures = talk.last(TurnMeasured).figures
    assert figures["status"] == "cancelled"
    assert figures["cancel_delay"] == 0.0


def test_without_back_channels_an_answer_ends_at_the_onset() -> None:
    talk = answering(backchannel_s=0.0)
    talk.hear(speech(*INTERRUPTION)[: round(0.3 * RATE)])
    assert talk.last(ResponseEnded).status == "cancelled"


def test_history_keeps_what_was_heard() -> None:
    talk = answering(backchannel_s=0.0)
    begun = talk.at[id(talk.all(Sound)[0])]
    talk.hear(speech(*INTERRUPTION))
    ended = talk.last(ResponseEnded)
    heard_s = talk.at[id(ended)] - begun
    kept = next(i for i in talk.session.history.items if i.id == ended.item_id).codes.shape[1] / 50
    assert abs(kept - heard_s) <= 0.05 < ended.said_s
    talk.do(Truncate(item_id=ended.item_id, heard_s=0.1))
    item = next(i for i in talk.session.history.items if i.id == ended.item_id)
    assert item.codes.shape[1] == 5


def test_an_interruption_is_answered_as_any_turn() -> None:
    talk = answering()
    talk.hear(np.concatenate([speech(*INTERRUPTION), silence(0.8)]))
    first, second = talk.all(ResponseStarted)
    question = talk.last(Committed)
    assert second.previous_item_id == question.item_id
    assert question.previous_item_id == first.item_id
    assert question.duration_s > 2.5  # with what was said before the answer ended


def test_after_a_back_channel_the_answer_goes_on_as_if_nothing_had_been() -> None:
    undisturbed = answering()
    undisturbed.hear(silence(LONG_S + 1))
    talk = answering()
    talk.hear(speech(*MURMUR))
    talk.hear(silence(LONG_S + 2))
    (murmur,) = talk.all(Backchannel)
    assert 0.3 < murmur.duration_s < 0.7
    assert len(talk.all(SpeechStarted)) == len(talk.all(Committed)) == 1
    assert np.array_equal(talk.sound(), undisturbed.sound())
    assert len(talk.sound()) == pytest.approx(LONG_S * RATE)
    assert talk.last(ResponseEnded).reason == "max_output_tokens"
    assert len(talk.session.history.items) == 2


def test_an_answer_that_may_not_be_interrupted_is_finished_first() -> None:
    talk = answering(interrupt=False)
    talk.hear(np.concatenate([speech(*INTERRUPTION), silence(LONG_S)]))
    kinds = [type(event).__name__ for event in talk.events]
    assert talk.all(ResponseEnded)[0].status == "incomplete"
    assert len(talk.all(ResponseStarted)) == 2
    assert kinds.index("ResponseEnded") < len(kinds) - kinds[::-1].index("ResponseStarted") - 1


def test_the_end_of_an_answer_can_be_interrupted_while_it_is_still_heard() -> None:
    """All sound is out long before it was heard: what was not heard leaves the history."""
    talk = Talk(first=settings(max_answer_s=LONG_S, lead_s=0, turns=TurnSettings(backchannel_s=0)))
    talk.ask()
    talk.until(lambda: bool(talk.all(ResponseEnded)))
    talk.hear(speech(*INTERRUPTION))
    item = talk.session.history.items[1]
    assert talk.last(ResponseEnded).status == "incomplete"
    assert 0 < item.codes.shape[1] < 1.5 * 50


def test_a_held_answer_goes_on_when_no_sound_tells_more() -> None:
    """A client that sends nothing in silence leaves an answer waiting no longer than that."""
    talk = answering()
    talk.hear(speech(*MURMUR)[: round(0.4 * RATE)])
    assert held(talk)
    wait_s = talk.hub.wait_s
    assert wait_s is not None
    assert 0 < wait_s <= 2.0
    talk.wait(2.0 + LONG_S)
    assert talk.all(Backchannel)
    assert talk.last(ResponseEnded).status == "incomplete"
    assert len(talk.sound()) == pytest.approx(LONG_S * RATE)


@pytest.mark.parametrize("way", ["clear", "push to talk"])
def test_a_held_answer_goes_on_when_its_interruption_is_dropped(way: str) -> None:
    talk = answering()
    talk.hear(speech(*MURMUR)[: round(0.4 * RATE)])
    assert held(talk)
    wanted = settings(max_answer_s=LONG_S, turns=None)
    talk.do(ClearInput() if way == "clear" else Configure(settings=wanted))
    talk.wait(LONG_S + 0.5)
    assert talk.last(ResponseEnded).status == "incomplete"
    assert len(talk.sound()) == pytest.approx(LONG_S * RATE)


def test_an_answer_that_the_client_cancels_while_it_is_held_makes_way_for_the_turn() -> None:
    talk = answering()
    talk.hear(speech(*MURMUR)[: round(0.4 * RATE)])
    talk.do(Cancel())
    talk.hear(np.concatenate([speech(*MURMUR), silence(0.8)]))
    assert len(talk.all(Committed)) == 2
    assert talk.all(ResponseEnded)[0].reason == "client_cancelled"


def test_a_storm_of_interruptions_leaves_a_conversation_in_order() -> None:
    """Speech on and off over answers: each ends once, one is given at a time."""
    talk = Talk(first=settings(max_answer_s=1.5, turns=TurnSettings(silence_s=0.25)))
    words = [QUESTION, MURMUR, INTERRUPTION, ("eight",), ("four", "nine"), ("twelve",)]
    for number in range(12):
        talk.hear(np.concatenate([speech(*words[number % 6]), silence(0.3 + number % 4 / 5)]))
    talk.hear(silence(2.5))
    active: str | None = None
    for event in talk.events:
        match event:
            case ResponseStarted():
                assert active is None
                active = event.response_id
            case Sound():
                assert event.response_id == active
            case ResponseEnded():
                assert event.response_id == active
                active = None
    assert active is None
    assert talk.now > 15
    assert len(talk.all(ResponseStarted)) == len(talk.all(ResponseEnded)) > 2
    assert {one.status for one in talk.all(ResponseEnded)} == {"cancelled", "incomplete"}
    ids = [item.id for item in talk.session.history.items]
    assert len(set(ids)) == len(ids)
    assert not talk.session.tickets
    assert not talk.hub.step()
    # And it still answers.
    talk.do(Configure(settings=settings(turns=None)), Hear(samples=speech(*QUESTION)), Commit())
    talk.do(Respond(response_id="last"))
    talk.work()
    assert len(talk.sound("last"))
