"""What waits for the session and for the client: bounded, in order, exact about what was lost."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlm.dialogue.messages import ClearInput, Command, Commit, Hear
from speechlm.dialogue.server.realtime.inbox import Inbox
from speechlm.dialogue.server.realtime.outbox import Outbox, SlowClientError


def numbered(begin: int, count: int) -> Hear:
    """Sound whose samples tell which they are."""
    return Hear(samples=np.arange(begin, begin + count, dtype=np.float32))


def taken(inbox: Inbox) -> list[Command]:
    commands = []
    while (command := inbox.take()) is not None:
        commands.append(command)
    return commands


@given(
    st.lists(
        st.one_of(
            st.integers(1, 90).map(lambda count: ("hear", count)),
            st.just(("commit", 0)),
            st.integers(1, 3).map(lambda count: ("take", count)),
        ),
        max_size=40,
    ),
    st.integers(0, 120),
)
def test_every_sample_that_is_heard_knows_when_it_was_sent(
    steps: list[tuple[str, int]], max_samples: int
) -> None:
    inbox = Inbox()
    sent = commits = dropped = 0
    heard: list[Command] = []
    for kind, count in steps:
        if kind == "hear":
            dropped += inbox.put(numbered(sent, count), rate=40, max_samples=max_samples)
            sent += count
            assert inbox.waiting_samples <= max_samples
        elif kind == "commit":
            inbox.put(Commit(), rate=40, max_samples=max_samples)
            commits += 1
        else:
            heard += [one for _ in range(count) if (one := inbox.take()) is not None]
    heard += taken(inbox)
    sounds = [one.samples for one in heard if isinstance(one, Hear)]
    samples = np.concatenate([np.zeros(0, np.float32), *sounds])
    assert len(samples) + dropped == sent
    assert dropped == inbox.dropped_samples
    assert [inbox.sent_at(at) for at in range(len(samples))] == samples.tolist()
    assert sum(isinstance(one, Commit) for one in heard) == commits
    assert inbox.num_others == 0


def test_the_oldest_sound_goes_first_and_nothing_else() -> None:
    inbox = Inbox()
    for begin in (0, 10, 20):
        inbox.put(numbered(begin, 10), rate=40, max_samples=100)
        inbox.put(ClearInput() if begin else Commit(), rate=40, max_samples=100)
    assert inbox.put(numbered(30, 10), rate=40, max_samples=20) == 20
    kinds = [type(command).__name__ for command in taken(inbox)]
    assert kinds == ["Commit", "ClearInput", "Hear", "ClearInput", "Hear"]


def test_sound_in_drops_makes_no_more_pieces_than_sound_at_once() -> None:
    inbox = Inbox()
    for at in range(1000):
        inbox.put(numbered(at, 1), rate=400, max_samples=1000)
    assert len(inbox) == 10


def test_texts_leave_in_their_order_and_without_sound_that_was_dropped() -> None:
    async def run() -> list[str]:
        outbox = Outbox(100)
        outbox.put("one")
        outbox.put("first", "r1", 10)
        outbox.put("two")
        outbox.put("second", "r1", 5)
        outbox.put("other", "r2", 7)
        assert outbox.drop_sound() == {"r1": 15, "r2": 7}
        assert outbox.num_bytes == len("onetwo")
        reader = asyncio.create_task(outbox.get())
        got = [await reader, await outbox.get()]
        waiting = asyncio.create_task(outbox.get())
        await asyncio.sleep(0)
        assert not waiting.done()
        outbox.put("last")
        return [*got, await waiting]

    assert asyncio.run(run()) == ["one", "two", "last"]


def test_more_than_may_wait_is_a_slow_client() -> None:
    outbox = Outbox(10)
    outbox.put("x" * 10)
    with pytest.raises(SlowClientError, match="expected a client that reads, got 11 bytes"):
        outbox.put("x")
