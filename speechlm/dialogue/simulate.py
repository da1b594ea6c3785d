"""A played user against a model: both sides on one clock, and what happened between them.

Time is cut into short stretches. In each the user speaks, having heard what was played up to its
beginning; the session hears it; what the session then says is queued and played from the next
stretch on, as a client would. As fast as it goes, computing takes no time on that clock, so the
same user, model and seed give the same dialogue, sample for sample. In real time, it takes the
time it takes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.dialogue.hub import Hub
from speechlm.dialogue.messages import (
    Command,
    Event,
    Failed,
    Hear,
    ResponseEnded,
    Sound,
    Truncate,
    TurnMeasured,
)
from speechlm.dialogue.settings import RATES, SessionSettings
from speechlm.dialogue.users import Heard, User
from speechlm.errors import SpeechLMError

USER = "user"
"""The only session's id."""
STRETCH_S = 0.02
"""The clock's step."""
REST_S = 2.0
"""When the user has nothing more to say, the model may finish: until nothing was heard of it for
so long."""
MOST_REST_S = 30.0
"""And no longer than this."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dialogue:
    """Both sides of a dialogue, in time with each other."""

    sample_rate: int
    input: Tensor
    """The user, float32 [T]."""
    output: Tensor
    """The model, as it was heard, float32 [T]."""
    events: list[dict[str, Any]]
    """What happened, in order: ``time_s`` on the input's clock, ``type``, and the rest."""


def rate_for(bundle: SpeechLM) -> int:
    """The rate at which a bundle is simulated, Hz: its own, or the nearest above."""
    return next((rate for rate in RATES if rate >= bundle.sample_rate), RATES[-1])


def simulate(
    bundle: SpeechLM,
    user: User,
    settings: SessionSettings,
    *,
    real_time: bool = False,
    on_heard: Callable[[Tensor], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
    keep: bool = True,
) -> Dialogue:
    """Let a user speak with a model.

    Args:
        bundle: Of turns or duplex.
        user: Speaks at ``settings.input_rate``.
        settings: Of the session; both rates are the same.
        real_time: Let the clock go as time goes; else as fast as the model computes.
        on_heard: Is given each stretch of the model's sound when it is its time, float32 [n].
        on_event: Is given what the session says, but for its sound.
        keep: Keep both sides; else the dialogue that is given back is empty.

    Raises:
        InputError: The bundle cannot hold a dialogue under these settings.
        SpeechLMError: The session broke.
    """
    rate = settings.input_rate
    assert settings.output_rate == rate
    stage = _Stage(rate, measured=real_time, keep=keep, on_heard=on_heard, on_event=on_event)
    began = time.monotonic()

    def clock() -> float:
        return time.monotonic() - began if real_time else stage.position / rate

    hub = Hub(bundle, lambda _, event: stage.take(event), max_sessions=1, clock=clock)
    hub.open(USER, settings)
    try:
        _play(hub, user, stage, rate, began if real_time else None)
    finally:
        hub.close(USER)
    return stage.dialogue(user)


def _play(hub: Hub, user: User, stage: _Stage, rate: int, began: float | None) -> None:
    """Let time pass; ``began`` is when it did in real time."""
    size = round(STRETCH_S * rate)
    rested = 0
    while True:
        said = user.speak(size, stage.heard())
        if len(said) < size:
            rests = rested / rate < MOST_REST_S and stage.heard().silent_s < REST_S
            if not (user.patient and rests):
                size = len(said)
            else:
                rested += size - len(said)
                said = torch.cat([said, torch.zeros(size - len(said))])
        if not size:
            return
        stage.play(said)
        hub.handle(USER, Hear(samples=said.numpy()))
        for command in stage.answers():
            hub.handle(USER, command)
        if began is None:
            while hub.step():
                pass
            continue
        due = began + stage.position / rate
        while (left := due - time.monotonic()) > 0:
            if not hub.step():
                wait = hub.wait_s
                time.sleep(min(left, max(wait, 0.001) if wait is not None else left))


class _Stage:
    """What was said by either side, and the queue of what will be heard."""

    def __init__(
        self,
        rate: int,
        *,
        measured: bool = False,
        keep: bool = True,
        on_heard: Callable[[Tensor], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._rate = rate
        self._keep = keep
        self._on_heard = on_heard
        self._on_event = on_event
        self._measured = measured
        """Whether the session's own figures are kept, which no two runs share."""
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._queue: deque[tuple[str, Tensor]] = deque()
        """Sound that was not played yet, with its item."""
        self._played: dict[str, int] = {}
        """Samples of each item that were heard."""
        self._active: str | None = None
        """The item that was played last."""
        self._answers: deque[Command] = deque()
        self._silent = 0
        self._log: list[dict[str, Any]] = []
        self.position = 0

    def take(self, event: Event) -> None:
        """Called with what the session says."""
        match event:
            case Sound():
                self._queue.append((event.item_id, torch.from_numpy(event.samples)))
                return
            case _ if self._on_event is not None:
                self._on_event(event)
        match event:
            case ResponseEnded(status="cancelled"):
                # As clients do: what was not heard yet is dropped, and the model is told.
                self._queue = deque(one for one in self._queue if one[0] != event.item_id)
                heard_s = self._played.get(event.item_id, 0) / self._rate
                self._answers.append(Truncate(item_id=event.item_id, heard_s=heard_s))
            case TurnMeasured() if not self._measured:
                return
            case Failed():
                raise SpeechLMError(f"the session broke: {event.message}")
        told = {one.name: getattr(event, one.name) for one in fields(event)}
        if "at" in told:
            told["at_s"] = told.pop("at") / self._rate
        self._note(type(event).__name__, **told)

    def answers(self) -> list[Command]:
        """What the client has to tell the session."""
        told = list(self._answers)
        self._answers.clear()
        return told

    def heard(self) -> Heard:
        return Heard(
            num_answers=len(self._played),
            silent_s=0.0 if self._queue else self._silent / self._rate,
        )

    def play(self, said: Tensor) -> None:
        """Let a stretch of time pass, in which the user says this."""
        output = torch.zeros_like(said)
        filled = 0
        while self._queue and filled < len(said):
            item, sound = self._queue.popleft()
            if item != self._active:
                self._stop(filled)
                self._active = item
                self._note("model.started", filled, item_id=item)
            part = sound[: len(said) - filled]
            output[filled : filled + len(part)] = part
            filled += len(part)
            self._played[item] = self._played.get(item, 0) + len(part)
            if len(part) < len(sound):
                self._queue.appendleft((item, sound[len(part) :]))
        if filled < len(said):
            self._stop(filled)
        self._silent = len(said) - filled + (0 if filled else self._silent)
        if self._keep:
            self._inputs.append(said)
            self._outputs.append(output)
        if self._on_heard is not None:
            self._on_heard(output)
        self.position += len(said)

    def dialogue(self, user: User) -> Dialogue:
        self._stop(0)
        events = [
            {"time_s": round(event.pop("at") / self._rate, 6), **event}
            for event in sorted([*user.log, *self._log], key=lambda event: int(event["at"]))
        ]
        return Dialogue(
            sample_rate=self._rate,
            input=torch.cat(self._inputs) if self._inputs else torch.zeros(0),
            output=torch.cat(self._outputs) if self._outputs else torch.zeros(0),
            events=events,
        )

    def _stop(self, offset: int) -> None:
        if self._active is not None:
            self._note("model.stopped", offset, item_id=self._active)
            self._active = None

    def _note(self, what: str, offset: int = 0, **told: Any) -> None:
        if self._keep:
            self._log.append({"at": self.position + offset, "type": what, **told})
