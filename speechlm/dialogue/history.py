"""What was said so far, in units, as the LM is to see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from speechlm.errors import SpeechLMError
from speechlm.layouts.grid import Prompt
from speechlm.model.unit_lm import UnitLM

ROOM = 0.5
"""At least this share of the positions that the LM sees is left for the answer."""


class CannotDo(SpeechLMError):
    """What a session is told and cannot do; the session goes on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """As :class:`speechlm.dialogue.messages.Refused` tells it."""


@dataclass(kw_only=True, slots=True, eq=False)
class Item:
    """What one side said at one time."""

    id: str
    role: Literal["user", "assistant"]
    codes: Tensor
    """int64 [K, F]; of an answer that was cut off, what was heard of it."""
    said: Tensor | None = None
    """Of an answer that was cut off: what was let out, of which the listener may say how much
    they heard."""


class History:
    """Items in order; :meth:`prompt` is what the LM answers to."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def index(self, item_id: str) -> int | None:
        return next((at for at, item in enumerate(self.items) if item.id == item_id), None)

    def previous(self, item_id: str) -> str | None:
        """The item before one."""
        at = self.index(item_id)
        return self.items[at - 1].id if at else None

    def insert(self, item: Item, after: str | None) -> None:
        """Put an item after another one, at the end for None, at the beginning for ``"root"``.

        Raises:
            CannotDo: There is such an item already, or none that it could follow.
        """
        if self.index(item.id) is not None:
            raise CannotDo("item_id_taken", f"there is an item {item.id!r} already")
        if after in (None, "root"):
            self.items.insert(0 if after else len(self.items), item)
            return
        at = self.index(str(after))
        if at is None:
            raise CannotDo("previous_item_id_invalid", f"there is no item {after!r}")
        self.items.insert(at + 1, item)

    def remove(self, item_id: str) -> Item:
        """Forget an item.

        Raises:
            CannotDo: There is no such item.
        """
        at = self.index(item_id)
        if at is None:
            raise CannotDo(
                "item_delete_invalid_item_id",
                f"there is no item {item_id!r} in this conversation",
            )
        return self.items.pop(at)

    def answer(self, item_id: str) -> Item:
        """An answer.

        Raises:
            CannotDo: There is no such item, or the user said it.
        """
        at = self.index(item_id)
        if at is None or self.items[at].role != "assistant":
            raise CannotDo(
                "item_truncate_invalid_item_id",
                f"expected an answer of this conversation, got {item_id!r}",
            )
        return self.items[at]

    @property
    def last_id(self) -> str | None:
        return self.items[-1].id if self.items else None

    def question(self) -> Tensor | None:
        """All that the user said since the last answer, int64 [K, F]; None if nothing."""
        parts: list[Tensor] = []
        for item in reversed(self.items):
            if item.role == "assistant":
                break
            parts.insert(0, item.codes)
        return torch.cat(parts, dim=1) if parts else None

    def prompt(self, lm: UnitLM, num_turns: int, positions: int) -> tuple[Prompt, int] | None:
        """What is to be answered, after up to ``num_turns`` earlier questions with answers.

        What has no room in the ``positions`` that the LM sees is left out from the oldest on:
        earlier turns, then the beginning of the question.

        Returns:
            The prompt and how many frames of units it holds; None where there is nothing to
            answer.
        """
        question = self.question()
        if question is None or not question.shape[1]:
            return None
        room = round((1 - ROOM) * positions)
        prompt = lm.layout.prompt(lm.vocabulary, {"question": question})
        while len(prompt) > room and question.shape[1] > 1:
            share = room / len(prompt)
            question = question[:, -max(1, int(share * question.shape[1])) :]
            prompt = lm.layout.prompt(lm.vocabulary, {"question": question})
        count = question.shape[1]
        ids = prompt.ids
        for asked, answered in self._exchanges()[:num_turns]:
            both = {"question": asked, "answer": answered}
            earlier = lm.layout.encode(lm.vocabulary, both).ids
            if ids.shape[1] + earlier.shape[1] > room:
                break
            ids = torch.cat([earlier, ids], dim=1)
            count += asked.shape[1] + answered.shape[1]
        return Prompt(ids=ids, given=prompt.given, state=prompt.state), count

    def _exchanges(self) -> list[tuple[Tensor, Tensor]]:
        """Questions and answers before the present question, the newest first."""
        found: list[tuple[Tensor, Tensor]] = []
        asked: list[Tensor] = []
        for item in self.items:
            if item.role == "user":
                asked.append(item.codes)
            elif asked:
                found.insert(0, (torch.cat(asked, dim=1), item.codes))
                asked = []
        return found
