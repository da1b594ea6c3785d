"""What both sides of a conversation know: its items, its answers, and what was asked for."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from speechlm.dialogue.messages import Command
from speechlm.dialogue.server.realtime.client_events import JSON
from speechlm.dialogue.server.realtime.configuration import Configuration
from speechlm.dialogue.server.realtime.inbox import Inbox
from speechlm.dialogue.server.realtime.items import Items, Kept, new_id, server_event
from speechlm.dialogue.server.realtime.response import Response, Wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A command that the session has yet to answer."""

    event_id: str | None
    """Of the client's event behind it."""
    key: str | None = None
    """The item or response that it is about."""
    silent: bool = False
    """The client did not ask for it and is not told."""


class State:
    """Of one connection.

    Args:
        configuration: What holds at first.
        inbox: Knows which sound was dropped before the session heard it.
    """

    def __init__(self, configuration: Configuration, inbox: Inbox) -> None:
        self.configuration = configuration
        self.inbox = inbox
        self.conversation_id = new_id("conv")
        self.items = Items()
        self.added: dict[str, tuple[Kept, str | None]] = {}
        """Items that the session was told of, with what they are to follow."""
        self.responses: dict[str, Response] = {}
        """Answers that are being given; mostly one."""
        self.wanted: dict[str, Wanted] = {}
        """Answers that were asked for and have not begun."""
        self.heard = False
        self.spoken = False
        self._asked: dict[str, deque[Asked]] = defaultdict(deque)

    def ask(self, command: Command, asked: Asked) -> None:
        """Remember who asked; the session answers commands of a kind in their order."""
        self._asked[type(command).__name__].append(asked)

    def answered(self, command: str, key: str | None = None) -> Asked | None:
        """Who asked for the oldest command of that name, and about that; None if nobody did."""
        waiting = self._asked[command]
        for asked in waiting:
            if key is None or asked.key == key:
                waiting.remove(asked)
                return asked
        return None


def error_event(
    code: str,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    event_id: str | None = None,
) -> JSON:
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return server_event("error", error=error)


def item_events(kept: Kept, previous_item_id: str | None) -> list[JSON]:
    """A whole item is new."""
    return [
        server_event(kind, previous_item_id=previous_item_id, item=kept.shown)
        for kind in ("conversation.item.added", "conversation.item.done")
    ]
