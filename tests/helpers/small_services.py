"""What callers of a dialogue service do, in a few words."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
from small_talk import QUESTION, settings, speech

from speechlm.dialogue.conversations import Conversation
from speechlm.dialogue.messages import Commit, Event, Hear, Respond, ResponseEnded, Sound
from speechlm.dialogue.service import DialogueService

PLAIN = settings(turns=None, lead_s=0, max_answer_s=0.6)


def question() -> np.ndarray:  # type: ignore[type-arg]
    return speech(*QUESTION)


async def told(session: Conversation, kind: type[Event], at_most_s: float = 20.0) -> list[Event]:
    """All events up to the first of a kind."""
    found: list[Event] = []
    async with asyncio.timeout(at_most_s):
        async for event in session.events():
            found.append(event)
            if isinstance(event, kind):
                break
    return found


async def answer(service: DialogueService) -> np.ndarray:  # type: ignore[type-arg]
    """Open a session, ask, and hear the answer out."""
    session = await service.open(PLAIN)
    session.send(Hear(samples=question()))
    session.send(Commit())
    session.send(Respond(response_id="r"))
    events = await told(session, ResponseEnded)  # type: ignore[arg-type]
    await session.close()
    return np.concatenate([one.samples for one in events if isinstance(one, Sound)])


def open_files(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_mb(pid: int | str = "self") -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
