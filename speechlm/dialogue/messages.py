"""What a session is told and what it says: plain values that cross threads and processes.

Sound is float32 NumPy, one channel, at the session's rates. Times are samples on the session's
input clock, which begins with the first sample that it hears: exact, whatever the network did.

An answered turn, in order: SpeechStarted, SpeechStopped, Committed, ResponseStarted, Sound (and
Text) …, ResponseEnded, TurnMeasured. A barge-in: SpeechStarted, ResponseEnded with status
``cancelled``; then the client may say Truncate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from speechlm.dialogue.settings import SessionSettings

Samples = npt.NDArray[np.float32]
"""float32 [n] within -1..1."""


# --- to a session -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Configure:
    """Go on under other settings; rates may change only before the first sound."""

    settings: SessionSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hear:
    """Sound from the user, any number of samples at the input rate."""

    samples: Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The user's turn ends here (push to talk). Answers Committed, or Refused with code
    ``input_audio_buffer_commit_empty``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClearInput:
    """Forget what was heard since the last turn. Answers InputCleared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Respond:
    """Answer now. Answers ResponseStarted, or Refused with code
    ``conversation_already_has_active_response`` or ``nothing_to_answer``."""

    response_id: str
    modality: Literal["audio", "text"] | None = None
    """None: the session's."""
    max_answer_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Stop the answer. Answers ResponseEnded with reason ``client_cancelled``, or Refused with
    code ``response_cancel_not_active``."""

    response_id: str | None = None
    """None: whichever is active."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AddItem:
    """Put something said into the history. Answers ItemAdded or Refused."""

    item_id: str
    role: Literal["user", "assistant"]
    samples: Samples | None = None
    """At the input rate."""
    text: str | None = None
    """Where the bundle reads text."""
    after: str | None = None
    """The item that it follows; None: the last, ``"root"``: at the very beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeleteItem:
    """Forget an item. Answers ItemDeleted, or Refused with code ``item_delete_invalid_item_id``."""

    item_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncate:
    """The user heard only so much of an answer: history is cut to it, at most to
    what was let out. Answers Truncated, or Refused with code ``item_truncate_invalid_item_id``."""

    item_id: str
    heard_s: float


Command = (
    Configure | Hear | Commit | ClearInput | Respond | Cancel | AddItem | DeleteItem | Truncate
)


# --- from a session -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechStarted:
    """The user speaks; ``item_id`` will be what they say."""

    at: int
    """Sample of the input, ``prefix_s`` before the onset."""
    item_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechStopped:
    at: int
    """Sample of the input where speech ended; the policy has waited since."""
    item_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """What the user said is an item of the history."""

    item_id: str
    previous_item_id: str | None
    duration_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class InputCleared:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Backchannel:
    """Short speech over an answer, which goes on; nothing of it enters the history."""

    at: int
    duration_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseStarted:
    response_id: str
    item_id: str
    previous_item_id: str | None
    modality: Literal["audio", "text"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sound:
    """A piece of an answer. Of a duplex session in continuous mode: of its one endless output,
    with no response around it."""

    response_id: str
    item_id: str
    samples: Samples
    """At the output rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A piece of what is being said, as text."""

    response_id: str
    item_id: str
    delta: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseEnded:
    response_id: str
    item_id: str
    status: Literal["completed", "cancelled", "failed", "incomplete"]
    reason: str | None = None
    """Of ``cancelled``: ``turn_detected`` or ``client_cancelled``; of ``incomplete``:
    ``max_output_tokens``, also where the watchdog ended a loop; of ``failed``: one line."""
    said_s: float = 0.0
    """Length of all Sound of this answer."""
    text: str = ""
    input_units: int = 0
    output_units: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcribed:
    """What the user said, as text, where the bundle writes it down."""

    item_id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemAdded:
    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemDeleted:
    item_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncated:
    item_id: str
    heard_s: float
    """What is left, at most what was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A command that could not be carried out; the session goes on."""

    command: str
    """Its class' name."""
    code: str
    message: str
    """One line: what was expected, what came, what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnMeasured:
    """Figures of one answer, ms unless said otherwise: one JSON line of the log."""

    figures: dict[str, Any]
    """response_id, status, policy_wait, decision_to_units, decision_to_audio, frame_p50,
    frame_p95, frame_p99, backlog, cancel_delay, question_s, answer_s; None where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The session is over: what ran it is gone, or broke. Nothing follows."""

    code: str
    message: str


Event = (
    SpeechStarted
    | SpeechStopped
    | Committed
    | InputCleared
    | Backchannel
    | ResponseStarted
    | Sound
    | Text
    | ResponseEnded
    | Transcribed
    | ItemAdded
    | ItemDeleted
    | Truncated
    | Refused
    | TurnMeasured
    | Failed
)
