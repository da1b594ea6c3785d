"""The items of a conversation in their order, as the protocol shows them."""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_hex

from speechlm.dialogue.server.realtime.client_events import JSON


def new_id(kind: str) -> str:
    return f"{kind}_{token_hex(10)}"


def server_event(kind: str, **fields: object) -> JSON:
    """An event for the client, in GA names."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def message(item_id: str, role: str, content: list[JSON], status: str = "completed") -> JSON:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": content,
    }


@dataclass(kw_only=True, slots=True)
class Kept:
    """One item."""

    shown: JSON
    in_session: bool
    """The session has it too; others are text for models that read, calls of tools and the like."""
    duration_s: float = 0.0
    """Of its sound."""


class Items:
    """What was said so far. A session keeps units; ids, order and transcripts are kept here."""

    def __init__(self) -> None:
        self._order: list[str] = []
        self._kept: dict[str, Kept] = {}

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._kept

    def __getitem__(self, item_id: str) -> Kept:
        return self._kept[item_id]

    @property
    def last(self) -> str | None:
        return self._order[-1] if self._order else None

    def add(self, kept: Kept, after: str | None = None) -> str | None:
        """Put an item behind another.

        Args:
            kept: The item.
            after: Whose follower it is; None for the last, ``"root"`` for none. The last too if
                that one is gone meanwhile.

        Returns:
            The item before it; None at the beginning.
        """
        item_id = kept.shown["id"]
        if after == "root":
            place = 0
        elif after in self._kept:
            place = self._order.index(after) + 1
        else:
            place = len(self._order)
        self._order.insert(place, item_id)
        self._kept[item_id] = kept
        return self._order[place - 1] if place else None

    def remove(self, item_id: str) -> None:
        if self._kept.pop(item_id, None) is not None:
            self._order.remove(item_id)

    def before(self, item_id: str) -> str | None:
        place = self._order.index(item_id)
        return self._order[place - 1] if place else None

    def known_to_session(self, after: str | None) -> str | None:
        """``after`` as the session can understand it: the nearest item up to it that it has."""
        if after is None or after == "root":
            return after
        for item_id in reversed(self._order[: self._order.index(after) + 1]):
            if self._kept[item_id].in_session:
                return item_id
        return "root"
