"""A dialogue service without a model: it answers each commit with a tone, as long as it is told.

For what no model can be made to do at will: sound without end, a session that breaks, no session
that is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np

from speechlm.dialogue.messages import (
    AddItem,
    Cancel,
    Command,
    Commit,
    Committed,
    Event,
    Failed,
    Hear,
    ItemAdded,
    Refused,
    Respond,
    ResponseEnded,
    ResponseStarted,
    Sound,
    SpeechStarted,
    Truncate,
    Truncated,
)
from speechlm.dialogue.service import BundleInfo, Busy
from speechlm.dialogue.settings import SessionSettings
from speechlm.errors import InputError

PIECE_S = 0.1


class ToneSession:
    def __init__(self, service: ToneService, settings: SessionSettings, number: int) -> None:
        self.id = f"tone-{number}"
        self.service = service
        self.settings = settings
        self.commands: list[Command] = []
        self.backlog_s = 0.0
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._items = 0
        self._active: str | None = None

    def send(self, command: Command) -> None:
        self.commands.append(command)
        match command:
            case Commit():
                self._items += 1
                item_id = f"q{self._items}"
                self.say(Committed(item_id=item_id, previous_item_id=None, duration_s=1.0))
            case Respond(response_id=response_id):
                self.begin(response_id)
                for _ in range(round(self.service.answer_s / PIECE_S)):
                    self.sound()
                if self.service.ends:
                    self.end("completed")
            case Cancel() if self._active is None:
                self.say(Refused(command="Cancel", code="response_cancel_not_active", message="-"))
            case Cancel():
                self.end("cancelled", "client_cancelled")
            case AddItem(item_id=item_id):
                self.say(ItemAdded(item_id=item_id, previous_item_id=None))
            case Truncate(item_id=item_id, heard_s=heard_s):
                self.say(Truncated(item_id=item_id, heard_s=heard_s))
            case Hear() if self.service.breaks:
                self.say(Failed(code="worker_lost", message="the worker was killed"))

    def say(self, event: Event) -> None:
        self._events.put_nowait(event)

    def begin(self, response_id: str) -> None:
        self._active = response_id
        self.say(
            ResponseStarted(
                response_id=response_id,
                item_id=f"a-{response_id}",
                previous_item_id=None,
                modality="audio",
            )
        )

    def sound(self) -> None:
        assert self._active is not None
        count = round(PIECE_S * self.settings.output_rate)
        tone = np.sin(np.arange(count, dtype=np.float32) / 10)
        self.say(Sound(response_id=self._active, item_id=f"a-{self._active}", samples=tone))

    def interrupt(self) -> None:
        """The user speaks."""
        self.say(SpeechStarted(at=0, item_id="next"))
        self.end("cancelled", "turn_detected")

    def end(self, status: str, reason: str | None = None) -> None:
        assert self._active is not None
        ended = ResponseEnded(
            response_id=self._active,
            item_id=f"a-{self._active}",
            status=status,  # type: ignore[arg-type]
            reason=reason,
        )
        self._active = None
        self.say(ended)

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        self.service.open_sessions.remove(self)
        self._events.put_nowait(None)


class ToneService:
    """Gives tone sessions.

    Args:
        answer_s: Length of answers.
        ends: Answers end by themselves.
        breaks: Sessions fail at the first sound that they hear.
        max_sessions: Further ones are refused.
        name: ``broken`` gives no session at all.
    """

    def __init__(
        self,
        answer_s: float = 0.5,
        *,
        ends: bool = True,
        breaks: bool = False,
        max_sessions: int = 8,
        name: str = "tone",
    ) -> None:
        self.answer_s = answer_s
        self.ends = ends
        self.breaks = breaks
        self.max_sessions = max_sessions
        self.open_sessions: list[ToneSession] = []
        self.opened = 0
        self.free = asyncio.Event()
        """Cleared, callers wait."""
        self.free.set()
        self.info = BundleInfo(
            name=name,
            fingerprint="tone",
            kind="turns",
            sample_rate=24_000,
            frame_s=0.04,
            writes_text=False,
            transcribes=False,
            speaks_text=False,
        )

    @property
    def num_sessions(self) -> int:
        return len(self.open_sessions)

    async def open(self, settings: SessionSettings) -> ToneSession:
        if self.num_sessions >= self.max_sessions:
            raise Busy("expected a free session, got none; try later", "session_limit_reached")
        if self.info.name == "broken":
            raise InputError("expected a bundle that answers, got none")
        await self.free.wait()
        self.opened += 1
        session = ToneSession(self, settings, self.opened)
        self.open_sessions.append(session)
        return session

    async def probe(self) -> float:
        return 0.0
