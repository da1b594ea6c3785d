"""A session of a full-duplex model: it listens and speaks in the same frames, and needs no turns.

Time is counted in samples of the input. One frame of input becomes units, which are the other
speaker's cells of one column of the LM; the LM draws its own cells of the next column, and the
vocoder makes a frame of sound of them. So for each frame that is heard, one is said, whatever the
chunks in which the network brings them: what is said depends on nothing but the sound, the
settings and the seed, as long as nothing had to be dropped.

The output is endless. In continuous mode all of it is let out. Otherwise an answer begins where
the output leaves silence and ends after :data:`~speechlm.dialogue.gate.CLOSE_S` of it.

Sources:
    Nguyen et al. 2022 (dGSLM), arXiv:2203.16502; Défossez et al. 2024 (Moshi), arXiv:2410.00037.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.dialogue.gate import Gate, is_silent
from speechlm.dialogue.messages import (
    AddItem,
    Cancel,
    ClearInput,
    Command,
    Commit,
    Configure,
    DeleteItem,
    Event,
    Hear,
    InputCleared,
    Refused,
    Respond,
    ResponseEnded,
    ResponseStarted,
    Sound,
    Text,
    Truncate,
    Truncated,
    TurnMeasured,
)
from speechlm.dialogue.resampling import StreamResampler
from speechlm.dialogue.settings import SessionSettings
from speechlm.errors import InputError
from speechlm.generation.engine import Drawn, Engine
from speechlm.generation.request import Request
from speechlm.layouts.live import OtherSpeaker, OwnSpeech, two_speakers
from speechlm.model.unit_lm import UnitLM

DUPLEX_SAMPLING = SamplingConfig(temperature=0.8, top_k=50)
"""How units are drawn unless a session says otherwise: the most probable one each time is mostly
one more frame of silence."""
WINDOW = 1024
"""Columns that are remembered, if the model's context is not shorter and sampling names none."""
CATCH_UP_S = 1.0
"""From so much waiting input on, silent frames of it are dropped."""
MOST_WAITING_S = 30.0
"""Of input; what goes beyond it is dropped, oldest first."""
MEASURED_FRAMES = 1024
"""The last ones, of which percentiles are told."""


def duplex_request(lm: UnitLM, settings: SessionSettings) -> Request:
    """What a session asks of the engine: all that the LM will ever say.

    Raises:
        InputError: The LM's layout does not hold two speakers.
    """
    layout = two_speakers(lm.layout)
    sampling = settings.sampling or DUPLEX_SAMPLING
    limit = lm.decoder.config.max_positions
    moves = lm.decoder.config.position in ("rope", "none")
    nothing = torch.zeros(layout.num_codebooks, 0, dtype=torch.int64)
    return Request(
        prompt=layout.prompt(lm.vocabulary, {"self": nothing, "other": nothing}),
        sampling=replace(
            sampling,
            max_units=2**62,
            window=min(sampling.window or WINDOW, limit) if moves else 0,
        ),
        seeds=(settings.seed,),
        num_live_rows=layout.num_live_rows,
        endless=True,
    )


@dataclass(kw_only=True, slots=True)
class _Answer:
    response_id: str
    item_id: str
    num_samples: int = 0
    num_frames: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""


@dataclass(kw_only=True, slots=True)
class _Waiting:
    """Input that was not heard yet, float32, and its length."""

    parts: deque[Tensor] = field(default_factory=deque)
    length: int = 0

    def push(self, part: Tensor) -> None:
        self.parts.append(part)
        self.length += len(part)

    def take(self, count: int) -> Tensor:
        """The first ``count`` samples, which must be there."""
        taken: list[Tensor] = []
        self.length -= count
        while count:
            part = self.parts.popleft()
            if len(part) > count:
                self.parts.appendleft(part[count:])
                part = part[:count]
            taken.append(part)
            count -= len(part)
        return torch.cat(taken)


class DuplexSession:
    """One conversation; :class:`~speechlm.dialogue.hub.Hub` runs it beside others."""

    def __init__(
        self,
        model: SpeechLM,
        engine: Engine,
        settings: SessionSettings,
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            model: The bundle, whose layout is ``duplex``; shared.
            engine: Shared by all sessions; whoever calls its ``step`` calls :meth:`drawn` for
                what it drew of :attr:`tickets`, and then :meth:`tick`.
            settings: Of this conversation; those of turns do not matter.
            emit: Is called with each event.
            clock: Seconds, for how long frames take.

        Raises:
            InputError: The bundle is none of two speakers, or the settings ask for what it
                cannot do.
        """
        self._model = model
        self._engine = engine
        self._emit = emit
        self._clock = clock
        self._num_answers = 0
        self._said: dict[str, float] = {}
        """Length of each answer, s, by item."""
        self._ended = False
        self._begin(settings)

    def _begin(self, settings: SessionSettings) -> None:
        model = self._model
        self.settings = settings
        self.frame_s = model.tokenizer.hop_length / model.tokenizer.sample_rate
        self._into = StreamResampler(settings.input_rate, model.tokenizer.sample_rate)
        self._out = StreamResampler(model.vocoder.sample_rate, settings.output_rate)
        self._tokenizer = model.tokenizer.stream()
        self._vocoder = model.vocoder.stream(settings.voice or model.reply_voice)
        self._other = OtherSpeaker(model.lm.layout, model.lm.vocabulary)
        self._own = OwnSpeech(model.lm.layout, model.lm.vocabulary)
        self._gate = Gate(self.frame_s)
        self._answer: _Answer | None = None
        self._waiting = _Waiting()
        self._sounding = _Waiting()
        """Said, but no whole frame of output yet."""
        self._begun: deque[float] = deque()
        """When each frame that the model is at was taken up, s."""
        self._frames_ms: deque[float] = deque(maxlen=MEASURED_FRAMES)
        self._input_samples = 0
        self._num_given = 0
        self._num_drawn = 0
        self.num_dropped = 0
        """Frames of input dropped to catch up."""
        self.num_lost = 0
        """Frames of input that were too much."""
        self.tickets: tuple[int, ...] = tuple(self._engine.add(duplex_request(model.lm, settings)))
        self._give(torch.zeros(model.tokenizer.num_codebooks, 0, dtype=torch.int64))

    @property
    def wait_s(self) -> float | None:
        """None: nothing happens by waiting."""
        return None

    @property
    def backlog_s(self) -> float:
        """Input that was not heard yet."""
        return self._waiting.length / self._model.tokenizer.sample_rate

    def handle(self, command: Command) -> None:
        """Take a command; never blocks for long: sound is only put aside."""
        if self._ended:
            return
        match command:
            case Hear():
                self._hear(command.samples)
            case ClearInput():
                self._waiting = _Waiting()
                self._emit(InputCleared())
            case Configure():
                self._configure(command.settings)
            case Cancel():
                self._cancel(command.response_id)
            case Truncate():
                self._truncate(command)
            case Commit():
                self._refuse(
                    command,
                    "input_audio_buffer_commit_empty",
                    "a full-duplex model hears all the time: there is no turn to commit",
                )
            case Respond():
                self._refuse(
                    command,
                    "nothing_to_answer",
                    "a full-duplex model speaks when it wants to: it cannot be asked to",
                )
            case AddItem():
                self._refuse(
                    command,
                    "item_create_not_supported",
                    "a full-duplex model remembers what it heard: send sound instead of items",
                )
            case DeleteItem():
                self._refuse(
                    command,
                    "item_delete_invalid_item_id",
                    "a full-duplex model cannot forget what it heard",
                )

    def tick(self) -> None:
        """Let the model hear the next frame, if it is done with those before."""
        hop = self._model.tokenizer.hop_length
        while not self._ended and self._num_given <= self._num_drawn:
            if self._waiting.length < hop:
                return
            frame = self._waiting.take(hop)
            if self.backlog_s > CATCH_UP_S and is_silent(frame):
                self.num_dropped += 1
                continue
            begun = self._clock()
            self._begun.extend([begun] * self._give(self._tokenizer.push(frame)))

    def drawn(self, drawn: Drawn) -> None:
        """Say what the model drew."""
        self._num_drawn += 1
        self._write(drawn.column)
        codes = self._own.push(drawn.column)
        if codes.shape[1]:
            self._say(self._out.push(self._vocoder.push(codes)))
        if len(self._begun) > self._num_given - (self._num_drawn - 1):
            self._frames_ms.append(1000 * (self._clock() - self._begun.popleft()))
        if drawn.finished:
            if self._answer is not None:
                self._end("failed", "the context is full")
            raise InputError(
                "the model's context is full, and its positions are none that could move on; "
                "open another session"
            )

    def close(self) -> None:
        """Free what the engine holds; nothing is said any more."""
        self._ended = True
        self._engine.cancel(self.tickets[0])

    def _hear(self, samples: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._input_samples += len(samples)
        self._waiting.push(self._into.push(torch.from_numpy(np.ascontiguousarray(samples))))
        tokenizer = self._model.tokenizer
        too_much = self._waiting.length - round(MOST_WAITING_S * tokenizer.sample_rate)
        if too_much > 0:
            frames = -(-too_much // tokenizer.hop_length)
            self._waiting.take(frames * tokenizer.hop_length)
            self.num_lost += frames
        self.tick()

    def _give(self, codes: Tensor) -> int:
        """Let the engine know what was heard; how many columns it made."""
        cells = self._other.push(codes)
        self._num_given += cells.shape[1]
        self._engine.give(self.tickets[0], cells)
        return cells.shape[1]

    def _write(self, column: tuple[int, ...]) -> None:
        token = self._own.text_token(column)
        written = self._model.lm.text_tokenizer
        if token is not None and written is not None and self._answer is not None:
            self._answer.tokens.append(token)
            text = written.decode(self._answer.tokens)
            delta, self._answer.text = text[len(self._answer.text) :], text
            self._emit(
                Text(
                    response_id=self._answer.response_id,
                    item_id=self._answer.item_id,
                    delta=delta,
                )
            )

    def _say(self, sound: Tensor) -> None:
        """Let out whole frames of output, at its rate."""
        self._sounding.push(sound)
        size = round(self.frame_s * self.settings.output_rate)
        while self._sounding.length >= size:
            frame = self._sounding.take(size)
            if self.settings.continuous:
                self._let_out(frame, "", "")
                continue
            verdict = self._gate.hear(frame)
            if verdict == "opens":
                self._start()
            if verdict != "silence" and (answer := self._answer) is not None:
                answer.num_samples += len(frame)
                answer.num_frames += 1
                self._let_out(frame, answer.response_id, answer.item_id)
                if verdict == "closes":
                    self._end("completed")
                elif answer.num_samples >= self.settings.max_answer_s * self.settings.output_rate:
                    self._gate.split()
                    self._end("incomplete", "max_output_tokens")

    def _let_out(self, frame: Tensor, response_id: str, item_id: str) -> None:
        self._emit(Sound(response_id=response_id, item_id=item_id, samples=frame.numpy()))

    def _start(self) -> None:
        previous = next(reversed(self._said), None)
        self._num_answers += 1
        number = self._num_answers
        self._answer = _Answer(response_id=f"resp_{number}", item_id=f"item_{number}")
        self._emit(
            ResponseStarted(
                response_id=self._answer.response_id,
                item_id=self._answer.item_id,
                previous_item_id=previous,
                modality="audio",
            )
        )

    def _end(
        self,
        status: Literal["completed", "cancelled", "failed", "incomplete"],
        reason: str | None = None,
    ) -> None:
        answer = self._answer
        assert answer is not None
        self._answer = None
        said_s = answer.num_samples / self.settings.output_rate
        self._said[answer.item_id] = said_s
        while len(self._said) > MEASURED_FRAMES:
            self._said.pop(next(iter(self._said)))
        self._emit(
            ResponseEnded(
                response_id=answer.response_id,
                item_id=answer.item_id,
                status=status,
                reason=reason,
                said_s=said_s,
                text=answer.text,
                output_units=answer.num_frames,
            )
        )
        self._emit(TurnMeasured(figures=self._figures(answer, status, said_s)))

    def _figures(self, answer: _Answer, status: str, said_s: float) -> dict[str, Any]:
        frames = np.array(self._frames_ms or [0.0])
        percentiles = {
            f"frame_p{at}": round(float(np.percentile(frames, at)), 2) for at in (50, 95, 99)
        }
        return {
            "response_id": answer.response_id,
            "status": status,
            "policy_wait": None,
            "decision_to_units": None,
            "decision_to_audio": None,
            **percentiles,
            "backlog": round(1000 * self.backlog_s, 1),
            "cancel_delay": None,
            "question_s": None,
            "answer_s": round(said_s, 3),
            "dropped_frames": self.num_dropped,
            "lost_frames": self.num_lost,
        }

    def _configure(self, settings: SessionSettings) -> None:
        before = self.settings
        kept = ("input_rate", "output_rate", "sampling", "seed", "voice")
        if all(getattr(before, name) == getattr(settings, name) for name in kept):
            self.settings = settings
        elif self._input_samples:
            self._refuse(
                Configure(settings=settings),
                "session_already_started",
                f"{', '.join(kept)} of a full-duplex session cannot change once it has heard sound",
            )
        else:
            self._engine.cancel(self.tickets[0])
            self._begin(settings)

    def _cancel(self, response_id: str | None) -> None:
        answer = self._answer
        if answer is None or response_id not in (None, answer.response_id):
            self._refuse(
                Cancel(response_id=response_id),
                "response_cancel_not_active",
                f"Cancellation failed: expected the answer that is being said, got {response_id}",
            )
            return
        self._gate.hush()
        self._end("cancelled", "client_cancelled")

    def _truncate(self, command: Truncate) -> None:
        answer = self._answer
        said_s = self._said.get(command.item_id)
        if answer is not None and answer.item_id == command.item_id:
            said_s = answer.num_samples / self.settings.output_rate
        if said_s is None:
            self._refuse(
                command,
                "item_truncate_invalid_item_id",
                f"expected an answer of this session, got {command.item_id!r}",
            )
            return
        # What was said stays in the model's own stream: it goes on as if it had been heard.
        heard_s = min(said_s, max(0.0, command.heard_s))
        self._said[command.item_id] = heard_s
        self._emit(Truncated(item_id=command.item_id, heard_s=heard_s))

    def _refuse(self, command: Command, code: str, message: str) -> None:
        self._emit(Refused(command=type(command).__name__, code=code, message=message))
