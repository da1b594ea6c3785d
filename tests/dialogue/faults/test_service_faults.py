"""What callers do to a service: drop at any time, flood it, leave it silent for hours."""

from __future__ import annotations

import asyncio
import gc
import resource

import numpy as np
import pytest
import torch
from small_services import PLAIN, answer, memory_mb, open_files, question, told
from small_talk import INTERRUPTION, QUESTION, RATE, Talk, settings, silence, speech, talker

pytest.importorskip("onnxruntime")

from speechlm.dialogue.ear import Ear
from speechlm.dialogue.local import LocalService
from speechlm.dialogue.messages import (
    Commit,
    Committed,
    Configure,
    Hear,
    Respond,
    ResponseEnded,
    Sound,
    SpeechStarted,
    TurnMeasured,
)
from speechlm.dialogue.settings import SessionSettings, TurnSettings
from speechlm.errors import InputError


def test_a_thousand_connects_and_drops_leave_nothing() -> None:
    async def work() -> None:
        async with LocalService(talker()) as service:

            async def some(count: int) -> None:
                for _ in range(count):
                    session = await service.open(PLAIN)
                    session.send(Hear(samples=silence(0.1)))
                    await session.close()

            await some(50)
            gc.collect()
            memory, files, tasks = memory_mb(), open_files(), len(asyncio.all_tasks())
            await some(1000)
            await service.probe()
            gc.collect()
            assert service.num_sessions == 0
            assert not service._sessions
            assert open_files() == files
            assert len(asyncio.all_tasks()) == tasks
            assert memory_mb() - memory < 20

    asyncio.run(work())


STATES = {
    "before any sound": [],
    "during speech": [speech(*QUESTION)[:8000]],
    "between stop and answer": [speech(*QUESTION), silence(0.6)],
    "during the answer": [speech(*QUESTION), silence(0.9)],
    "while it is held": [speech(*QUESTION), silence(0.9), speech(*INTERRUPTION)[:6400]],
}


@pytest.mark.parametrize("state", STATES)
def test_a_drop_in_any_state_leaves_the_hub_free(state: str) -> None:
    talk = Talk(first=settings(max_answer_s=4.0), max_sessions=1)
    for sound in STATES[state]:
        talk.hear(sound)
    count = len(talk.events)
    talk.hub.close("a")
    assert not talk.hub.step()
    assert talk.hub.wait_s is None
    talk.hub.handle("a", Hear(samples=silence(0.1)))
    assert len(talk.events) == count
    talk.open("a", settings())
    talk.ask()
    talk.until(lambda: bool(talk.all(ResponseEnded)))


def test_ten_minutes_at_once_hold_up_nobody() -> None:
    """They are heard beside the others, a slice at a time."""

    async def work() -> None:
        async with LocalService(talker()) as service:
            flooding = await service.open(settings(turns=TurnSettings(respond=False)))
            turn = np.concatenate([speech(*QUESTION), silence(1.0)])
            flood = np.concatenate([turn, silence(600 - len(turn) / RATE)])
            flooding.send(Hear(samples=flood))
            assert flooding.backlog_s == pytest.approx(600)
            assert len(await answer(service))
            assert flooding.backlog_s > 300  # the others did not wait for its end
            committed = (await told(flooding, Committed))[-1]
            assert isinstance(committed, Committed)
            assert committed.duration_s < 3
            await flooding.close()
            await service.probe()
            assert service.num_sessions == 0

    asyncio.run(work())


def test_a_flood_is_heard_as_if_it_had_come_in_time() -> None:
    """Turns within it are found where they were."""
    turn = np.concatenate([speech(*QUESTION), silence(1.0)])
    sound = np.tile(turn, 3)
    wanted = settings(turns=TurnSettings(respond=False))
    flooded, live = Talk(first=wanted), Talk(first=wanted)
    flooded.do(Hear(samples=sound))
    live.hear(sound)
    assert len(flooded.all(Committed)) == 3
    assert flooded.events == live.events


@pytest.mark.parametrize("turns", [TurnSettings(), None], ids=["vad", "push to talk"])
def test_hours_of_silence_cost_no_memory(turns: TurnSettings | None) -> None:
    """Two minutes by default; what is kept is bounded well below that."""
    talk = Talk(first=settings(turns=turns))
    minute = silence(60.0)
    sizes = []
    for _ in range(2):
        talk.do(Hear(samples=minute))
        talk.now += 60
        talk.work()
        sizes.append(_held(talk.session._ear))
    assert talk.kinds() == []
    assert sizes[1] <= 1.1 * sizes[0] < 4e6
    talk.do(Configure(settings=settings()))
    talk.ask()
    assert talk.last(SpeechStarted).at == pytest.approx(120 * RATE, abs=RATE // 2)


def _held(ear: Ear) -> int:
    """Bytes of all tensors, and numbers, that an ear holds."""
    found, todo, total = set(), [ear.__dict__], 0
    while todo:
        one = todo.pop()
        if id(one) in found or isinstance(one, type):
            continue
        found.add(id(one))
        if isinstance(one, torch.Tensor):
            total += one.untyped_storage().nbytes()
        elif isinstance(one, float):
            total += 8
        elif isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, (list, tuple)) or type(one).__name__ == "deque":
            todo += one
        elif type(one).__name__ in ("_Utterance", "_Tail"):
            names = getattr(one, "__slots__", None) or one.__dict__
            todo += [getattr(one, name) for name in names]
    return total


@pytest.mark.slow
def test_an_hour_of_silence_costs_no_memory() -> None:
    talk = Talk(first=settings(turns=TurnSettings()))
    talk.do(Hear(samples=silence(60.0)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(59):
        talk.do(Hear(samples=silence(60.0)))
        talk.now += 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB
    talk.ask()
    assert talk.last(SpeechStarted).at == pytest.approx(3600 * RATE, abs=RATE // 2)


def test_a_caller_who_asks_for_too_much_is_told_and_leaves_nothing() -> None:
    async def work() -> None:
        async with LocalService(talker()) as service:
            for wish in (
                SessionSettings(turns=TurnSettings(policy="none-such")),
                SessionSettings(modality="text"),
                SessionSettings(voice="none-such"),
            ):
                with pytest.raises(InputError):
                    await service.open(wish)
            assert service.num_sessions == 0
            assert len(await answer(service))

    asyncio.run(work())


def test_the_figures_of_a_turn_tell_the_backlog() -> None:
    async def work() -> None:
        async with LocalService(talker()) as service:
            session = await service.open(PLAIN)
            for command in (Hear(samples=question()), Commit(), Respond(response_id="r")):
                session.send(command)
            events = await told(session, TurnMeasured)
            figures = events[-1].figures  # type: ignore[union-attr]
            assert figures["backlog"] == 0.0
            assert any(isinstance(one, Sound) for one in events)
            await session.close()

    asyncio.run(work())


def test_eight_at_once_and_no_ninth() -> None:
    async def work() -> None:
        async with LocalService(talker(), max_sessions=8) as service:
            alone = await answer(service)
            crowd = await asyncio.gather(*(answer(service) for _ in range(8)))
            assert len(alone)
            assert all(np.array_equal(alone, one) for one in crowd)

    asyncio.run(work())
