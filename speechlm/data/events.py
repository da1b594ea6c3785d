"""What happens in dialogues when: the truth that is written beside a corpus of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speechlm.errors import CorpusError

Speaker = Literal["user", "model"]
Kind = Literal["turn", "pause", "gap", "backchannel", "interruption", "overlap"]
EVENTS_NAME = "events.jsonl"
"""Beside the manifest of a corpus of dialogues: an event a line."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in a dialogue; times in seconds."""

    kind: Kind
    """``turn``; ``pause`` within a turn; ``gap`` from one speaker's turn to the other's;
    ``backchannel``; ``interruption``, from where the user cuts in to where the model is silent;
    ``overlap``, both speaking."""
    speaker: Speaker
    """Whose it is; of gaps and overlaps whoever comes in."""
    start_s: float
    end_s: float
    text: str = ""

    def to_dict(self, dialogue: str) -> dict[str, Any]:
        """As a line of the ground truth has it."""
        times = {"start": round(self.start_s, 3), "end": round(self.end_s, 3)}
        row = {"dialogue": dialogue, "kind": self.kind, "speaker": self.speaker, **times}
        return {**row, "text": self.text} if self.text else row


def read_events(path: Path) -> dict[str, list[Event]]:
    """The truth of every dialogue by its name, in order.

    Raises:
        CorpusError: There is no such file, or a line is no event.
    """
    dialogues: dict[str, list[Event]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CorpusError(f"{path}: the events cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            event = Event(
                row["kind"], row["speaker"], row["start"], row["end"], row.get("text", "")
            )
            dialogues.setdefault(row["dialogue"], []).append(event)
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}:{number}: expected an event of a dialogue") from error
    return dialogues
