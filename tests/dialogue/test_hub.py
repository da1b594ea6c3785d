"""Many sessions on one engine: none disturbs another, what breaks one ends that one alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_bundle import small_bundle
from small_talk import QUESTION, RATE, Talk, settings, silence, speech, talker

pytest.importorskip("onnxruntime")

from speechlm.config import SamplingConfig
from speechlm.dialogue.history import History, Item
from speechlm.dialogue.messages import (
    Commit,
    Failed,
    Hear,
    Respond,
    ResponseEnded,
    TurnMeasured,
)
from speechlm.dialogue.watchdog import Watchdog
from speechlm.errors import InputError

PLAIN = settings(turns=None, lead_s=0)


def ask(talk: Talk, name: str, *words: str) -> None:
    said = speech(*(words or QUESTION))
    talk.do(Hear(samples=said), Commit(), Respond(response_id=name), name=name)


def test_a_seeded_answer_is_the_same_alone_and_among_seven_others() -> None:
    alone = Talk(first=PLAIN)
    ask(alone, "a")
    alone.work()
    crowd = Talk(first=PLAIN, max_sessions=8)
    asked = [("four",), ("nine", "one"), ("two",), ("eleven",), ("six",), ("ten",), ("five",)]
    for number, words in enumerate(asked):
        name = f"other{number}"
        crowd.open(name, settings(turns=None, lead_s=0, seed=number + 5))
        ask(crowd, name, *words)
        for _ in range(number):
            crowd.hub.step()
        if number == 3:
            ask(crowd, "a")
    crowd.work()
    assert len(alone.sound())
    assert np.array_equal(alone.sound(), crowd.sound())
    others = {crowd.sound(name=f"other{number}").tobytes() for number in range(7)}
    assert len(others) == 7


def test_a_session_that_breaks_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(first=PLAIN, max_sessions=2)
    talk.open("b", PLAIN)
    ask(talk, "a")
    ask(talk, "b")
    talk.hub.step()

    def broken(drawn: Any) -> None:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr(talk.session, "drawn", broken)
    talk.work()
    failed = talk.events[-1]
    assert isinstance(failed, Failed)
    assert failed.message == "RuntimeError: out of ideas"
    assert talk.last(ResponseEnded, "b").status == "incomplete"
    assert list(talk.hub.sessions) == ["b"]
    talk.do(Hear(samples=silence(0.1)))
    assert talk.events[-1] is failed
    talk.open("a", PLAIN)  # its place is free again


def test_an_engine_that_breaks_fails_all_and_the_hub_goes_on() -> None:
    talk = Talk(first=PLAIN, max_sessions=2)
    talk.open("b", PLAIN)
    ask(talk, "a")
    ask(talk, "b")

    def broken() -> None:
        raise RuntimeError("no memory")

    talk.hub._engine.step = broken  # type: ignore[assignment, method-assign]
    talk.work()
    for name in ("a", "b"):
        assert isinstance(talk.said[name][-1], Failed)
    assert not talk.hub.sessions
    talk.open("a", PLAIN)
    ask(talk, "a")
    talk.work()
    assert talk.last(ResponseEnded).status == "incomplete"


def test_a_session_that_was_closed_draws_and_says_no_more() -> None:
    talk = Talk(first=PLAIN)
    ask(talk, "a")
    talk.hub.step()
    count = len(talk.events)
    talk.hub.close("a")
    assert not talk.hub.step()
    assert len(talk.events) == count
    assert talk.hub.wait_s is None


def test_no_more_sessions_than_there_is_room_for() -> None:
    talk = Talk(first=PLAIN, max_sessions=1)
    with pytest.raises(InputError, match="at most 1 at once"):
        talk.open("b", PLAIN)


class TestHistory:
    """What the LM is given to answer to."""

    @staticmethod
    def exchange(count: int) -> History:
        history = History()
        for number in range(count):
            for role in ("user", "assistant"):
                codes = torch.full((1, 10), number % 5)
                item = Item(id=f"{role}{number}", role=role, codes=codes)  # type: ignore[arg-type]
                history.items.append(item)
        history.items.append(Item(id="now", role="user", codes=torch.full((1, 10), 9)))
        return history

    @pytest.mark.parametrize("turns", [0, 1, 3])
    def test_so_many_earlier_turns_come_before_the_question(self, turns: int) -> None:
        lm = talker().lm
        found = self.exchange(3).prompt(lm, turns, 1024)
        assert found is not None
        parts = [
            lm.layout.encode(
                lm.vocabulary,
                {"question": torch.full((1, 10), n), "answer": torch.full((1, 10), n)},
            ).ids
            for n in range(3 - turns, 3)
        ]
        parts.append(lm.layout.prompt(lm.vocabulary, {"question": torch.full((1, 10), 9)}).ids)
        assert torch.equal(found[0].ids, torch.cat(parts, dim=1))
        assert found[1] == 10 + 20 * turns

    def test_the_oldest_turns_leave_first(self) -> None:
        lm = talker().lm
        all_of_it = self.exchange(4).prompt(lm, 4, 1024)
        some = self.exchange(4).prompt(lm, 4, 120)
        assert all_of_it is not None
        assert some is not None
        ids = some[0].ids
        assert 24 < ids.shape[1] <= 60
        assert torch.equal(ids, all_of_it[0].ids[:, -ids.shape[1] :])

    def test_of_a_question_that_is_too_long_the_end_is_kept(self) -> None:
        lm = talker().lm
        history = History()
        codes = torch.arange(200)[None] % 32
        history.items.append(Item(id="q", role="user", codes=codes))
        found = history.prompt(lm, 0, 100)
        assert found is not None
        assert 40 <= len(found[0]) <= 50
        end = lm.layout.prompt(lm.vocabulary, {"question": codes[:, -found[1] :]}).ids
        assert torch.equal(found[0].ids, end)

    def test_an_answer_that_nobody_heard_is_no_trouble(self) -> None:
        lm = talker().lm
        history = self.exchange(2)
        history.items[1].codes = torch.zeros(1, 0, dtype=torch.int64)
        assert history.prompt(lm, 2, 1024) is not None

    def test_turns_of_a_conversation_are_remembered(self) -> None:
        talk = Talk(first=settings(turns=None, lead_s=0, history_turns=2))
        units = []
        for _ in range(3):
            ask(talk, "a")
            talk.work()
            units.append(talk.last(ResponseEnded).input_units)
        assert units[0] < units[1] < units[2]


class TestWatchdog:
    def test_silence_that_goes_on_is_noticed(self) -> None:
        watchdog = Watchdog(50.0, RATE)
        codes = torch.arange(1000)[None]
        loud, soft = torch.full((RATE,), 0.1), torch.full((RATE,), 1e-4)
        assert watchdog.why(codes, soft) is watchdog.why(codes, soft) is None
        assert watchdog.why(codes, loud) is None
        assert [watchdog.why(codes, soft) for _ in range(3)] == [None, None, "silence"]

    @pytest.mark.parametrize("period", [1, 7, 40])
    def test_going_round_in_circles_is_noticed(self, period: int) -> None:
        loud = torch.full((RATE,), 0.1)
        codes = (torch.arange(160) % period)[None]
        assert Watchdog(50.0, RATE).why(codes, loud) == "loop"
        assert Watchdog(50.0, RATE).why(codes[:, :140], loud) is None

    def test_other_speech_is_let_pass(self) -> None:
        codes = torch.randint(32, (1, 500), generator=torch.Generator().manual_seed(0))
        assert Watchdog(50.0, RATE).why(codes, torch.full((RATE,), 0.1)) is None

    def test_a_loop_ends_an_answer(self) -> None:
        """The most probable units repeat themselves sooner or later."""
        greedy = settings(
            turns=None, lead_s=0, max_answer_s=20.0, sampling=SamplingConfig(temperature=0.0)
        )
        talk = Talk(small_bundle(), first=greedy)
        ask(talk, "a")
        talk.work()
        ended = talk.last(ResponseEnded)
        assert (ended.status, ended.reason) == ("incomplete", "max_output_tokens")
        assert 2.9 < ended.said_s < 19
        assert talk.last(TurnMeasured).figures["watchdog"] == "loop"
