"""One answer from its decision to its last sound: drawn, rendered, let out, perhaps cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from speechlm.bundle import SpeechLM
from speechlm.dialogue.history import Item
from speechlm.dialogue.messages import (
    Event,
    ResponseEnded,
    ResponseStarted,
    Sound,
    Text,
    TurnMeasured,
)
from speechlm.dialogue.resampling import StreamResampler
from speechlm.dialogue.settings import SessionSettings
from speechlm.dialogue.watchdog import Watchdog
from speechlm.generation.engine import Drawn
from speechlm.generation.rendering import Piece, Rendering
from speechlm.layouts.grid import Prompt

MOST_TEXT = 512
"""Columns that an answer may hold beside its units."""
PIECE_S = 0.08
"""Sound that is due is let out in pieces of at most this length."""


def whole_frames(duration_s: float, frame_rate: float) -> int:
    """Frames of units that a stretch of sound holds whole; a rounding error costs none."""
    return max(0, int(duration_s * frame_rate + 1e-6))


class Answer:
    """What comes of one request, once it has begun."""

    def __init__(
        self,
        *,
        model: SpeechLM,
        settings: SessionSettings,
        emit: Callable[[Event], None],
        clock: Callable[[], float],
        prompt: Prompt,
        response_id: str,
        item: Item,
        num_asked: int,
        policy_wait_s: float | None,
    ) -> None:
        self.response_id = response_id
        self.item = item
        self.tickets: tuple[int, ...] = ()
        """What the engine is drawing for it."""
        self.over = False
        """Whether ResponseEnded was said."""
        self.sent_s = 0.0
        """Sound let out."""
        self.truncated = False
        self.heard_text = ""
        """What the LM wrote down of the question."""
        self._settings = settings
        self._emit = emit
        self._clock = clock
        self._num_asked = num_asked
        self._rate = model.tokenizer.frame_rate
        most_units = settings.max_answer_s * self._rate * model.tokenizer.num_codebooks
        self._most_columns = most_units + MOST_TEXT
        """An LM that writes without end never comes to speak."""
        speaker = settings.voice or model.reply_voice
        self._rendering = Rendering(model.lm, model.vocoder, prompt, speaker)
        self._to_output = StreamResampler(model.vocoder.sample_rate, settings.output_rate)
        self._watchdog = Watchdog(self._rate, model.vocoder.sample_rate)
        self._ready = torch.zeros(0)
        """Rendered and not let out yet, at the output's rate."""
        self.drawing = True
        """Whether it needs more columns."""
        self._status: tuple[str, str | None] = ("completed", None)
        self._heard_until = 0.0
        """On the clock: when all that was let out will have been heard."""
        self._policy_wait_s = policy_wait_s
        self._decided = clock()
        self._first_units: float | None = None
        self._first_sound: float | None = None
        self._last_column = self._decided
        self._steps_s: list[float] = []
        self._held_since: float | None = None
        self._asked_to_stop: float | None = None
        self._why: str | None = None

    def begin(self, tickets: tuple[int, ...], previous_item_id: str | None) -> None:
        """The engine draws it from now on; says ResponseStarted."""
        self.tickets = tickets
        self._emit(
            ResponseStarted(
                response_id=self.response_id,
                item_id=self.item.id,
                previous_item_id=previous_item_id,
                modality=self._settings.modality,
            )
        )

    def drawn(self, drawn: Drawn) -> None:
        """Take the next column."""
        if not self.drawing:
            return
        now = self._clock()
        if self._first_units is None:
            self._first_units = now
        else:
            self._steps_s.append(now - self._last_column)
        self._last_column = now
        piece = self._rendering.push(drawn.column)
        if piece is not None:
            self._take(piece)
        if drawn.finished:
            self._end_drawing("completed", None)
        elif piece is not None and self._is_enough(piece):
            self._end_drawing("incomplete", "max_output_tokens")
        self.let_out()

    def _take(self, piece: Piece) -> None:
        self.item.codes = self._rendering.codes
        if piece.text:
            self._emit(Text(response_id=self.response_id, item_id=self.item.id, delta=piece.text))
        if self._settings.modality == "audio":
            self._ready = torch.cat([self._ready, self._to_output.push(piece.sound)])

    def _is_enough(self, piece: Piece) -> bool:
        """Whether the answer ends here, whatever the LM would go on to say."""
        codes = self._rendering.codes
        self._why = self._watchdog.why(codes, piece.sound)
        return (
            self._why is not None
            or codes.shape[1] >= self._settings.max_answer_s * self._rate
            or self._rendering.num_columns >= self._most_columns
        )

    def let_out(self) -> None:
        """Say as much sound as is due."""
        if self.over or self._held_since is not None:
            return
        rate = self._settings.output_rate
        while len(self._ready):
            now = self._clock()
            lead_s = self._settings.lead_s
            if lead_s and self._heard_until - now - lead_s > 1e-6:
                return
            count = round(PIECE_S * rate) if lead_s else len(self._ready)
            piece, self._ready = self._ready[:count], self._ready[count:]
            if self._first_sound is None:
                self._first_sound = now
            self._heard_until = max(self._heard_until, now) + len(piece) / rate
            self.sent_s += len(piece) / rate
            self._emit(
                Sound(
                    response_id=self.response_id,
                    item_id=self.item.id,
                    samples=np.ascontiguousarray(piece.numpy()),
                )
            )
        if not self.drawing:
            self._finish(*self._status)

    def wait_s(self) -> float | None:
        """When :meth:`let_out` has something to say, s from now; None: not by waiting."""
        if self.over or self._held_since is not None or not len(self._ready):
            return None
        return max(0.0, self._heard_until - self._clock() - self._settings.lead_s)

    def is_heard(self) -> bool:
        """Whether it is still being given, or its end is still in the listener's ear."""
        return not self.over or (not self.truncated and self._clock() < self._heard_until)

    def hold(self) -> None:
        """Let nothing out for now."""
        if self._held_since is None:
            self._held_since = self._clock()

    def release(self) -> None:
        """Go on where it was held."""
        self._held_since = None
        self.let_out()

    def stop(self, reason: str, asked: float | None = None) -> None:
        """Cut it off here: of its units those stay that were heard.

        Args:
            reason: As ResponseEnded tells it.
            asked: When what stops it came, on the clock.
        """
        self._asked_to_stop = asked
        if self._settings.modality == "audio":  # text is read as it comes
            heard_s = self.sent_s - max(0.0, self._heard_until - self._clock())
            self.item.said = self.item.codes[:, : whole_frames(self.sent_s, self._rate)]
            self.item.codes = self.item.codes[:, : whole_frames(heard_s, self._rate)]
        self.heard_text = self.heard_text or self._rendering.heard
        self.truncated = True
        self._ready = self._ready[:0]
        if not self.over:
            self._finish("cancelled", reason)

    def _end_drawing(self, status: str, reason: str | None) -> None:
        self.drawing = False
        self._status = status, reason
        self._take(self._rendering.finish())
        self.heard_text = self._rendering.heard
        if self._settings.modality == "audio":
            self._ready = torch.cat([self._ready, self._to_output.finish()])

    def _finish(self, status: Any, reason: str | None) -> None:
        self.over = True
        self._emit(
            ResponseEnded(
                response_id=self.response_id,
                item_id=self.item.id,
                status=status,
                reason=reason,
                said_s=self.sent_s,
                text=self._rendering.text,
                input_units=self._num_asked,
                output_units=self._rendering.codes.shape[1],
            )
        )
        self._emit(TurnMeasured(figures=self._figures(status)))

    def _figures(self, status: str) -> dict[str, Any]:
        def since(moment: float | None) -> float | None:
            return None if moment is None else round(1000 * (moment - self._decided), 3)

        steps = np.array(self._steps_s) * 1000
        frames = {
            f"frame_p{share}": round(float(np.percentile(steps, share)), 3) if len(steps) else None
            for share in (50, 95, 99)
        }
        now = self._clock()

        def until_now(moment: float | None) -> float | None:
            return None if moment is None else round(1000 * (now - moment), 3)

        return {
            "response_id": self.response_id,
            "status": status,
            "policy_wait": None if self._policy_wait_s is None else 1000 * self._policy_wait_s,
            "decision_to_units": since(self._first_units),
            "decision_to_audio": since(self._first_sound),
            "frame": round(1000 / self._rate, 3),
            **frames,
            "interruption_wait": until_now(self._held_since),
            "cancel_delay": until_now(self._asked_to_stop),
            "watchdog": self._why,
            "question_s": self._num_asked / self._rate,
            "answer_s": self.sent_s,
        }
