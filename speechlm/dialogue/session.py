"""One conversation in turns: hears, finds the turn's end, answers, stops when it is interrupted.

A session is told commands and says events (:mod:`speechlm.dialogue.messages`). It computes only
when it is called: :meth:`TurnSession.handle`, :meth:`TurnSession.drawn` with what the shared
engine drew for it, and :meth:`TurnSession.tick` when time has passed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.dialogue.answer import Answer, whole_frames
from speechlm.dialogue.ear import Ear
from speechlm.dialogue.history import CannotDo, History, Item
from speechlm.dialogue.messages import (
    AddItem,
    Backchannel,
    Cancel,
    ClearInput,
    Command,
    Commit,
    Committed,
    Configure,
    DeleteItem,
    Event,
    Hear,
    InputCleared,
    ItemAdded,
    ItemDeleted,
    Refused,
    Respond,
    SpeechStarted,
    SpeechStopped,
    Transcribed,
    Truncate,
    Truncated,
)
from speechlm.dialogue.settings import SessionSettings
from speechlm.dialogue.turn_policies import Pause, TurnPolicy, turn_policy
from speechlm.errors import ConfigError, InputError, SpeechLMError
from speechlm.generation.engine import Drawn, Engine
from speechlm.generation.request import Request

LEAST_TURN_S = 0.1
"""Sound below which there is nothing to commit."""
BACKCHANNEL_END_S = 0.2
"""Speech over an answer has ended after so much silence."""
MOST_HELD_S = 2.0
"""An answer waits so long for sound that tells whether it was interrupted: clients may send none
in silence."""
NEVER = 1_000_000
"""Columns that no answer reaches: its length is bounded in seconds."""


class TurnSession:
    """See the module; ``emit`` takes events as they come about."""

    def __init__(
        self,
        model: SpeechLM,
        engine: Engine,
        settings: SessionSettings,
        emit: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            model: The bundle; shared.
            engine: Shared by all sessions; whoever calls its ``step`` calls :meth:`drawn`.
            settings: Of this conversation.
            emit: Is called with each event.
            clock: Seconds, for what is being heard at the other end.

        Raises:
            InputError: The bundle cannot do what the settings ask for.
        """
        self.settings = settings
        self.history = History()
        self._model = model
        self._engine = engine
        self._emit = emit
        self._clock = clock
        self._item_ids = (f"item_{number}" for number in itertools.count(1))
        self._num_answers = 0
        self._called = clock()
        """When the last command came."""
        self._answer: Answer | None = None
        """The newest, also after its end."""
        self._turn_id: str | None = None
        self._onset_s: float | None = None
        """Of speech over an answer that is not known yet to be a turn."""
        self._respond_after = False
        """Whether to answer once the present answer is over."""
        self._policy: TurnPolicy | None = None
        self._ear = self._make_ear()
        self._configure(settings)

    @property
    def tickets(self) -> tuple[int, ...]:
        """What the engine is drawing for this session."""
        return () if self._answer is None else self._answer.tickets

    @property
    def wait_s(self) -> float | None:
        """When :meth:`tick` has something to do, seconds from now; None: nothing to wait for."""
        if self._onset_s is not None:
            return max(0.0, self._called + MOST_HELD_S - self._clock())
        return None if self._answer is None else self._answer.wait_s()

    def handle(self, command: Command) -> None:
        """Carry a command out; what cannot be is refused by an event."""
        self._called = self._clock()
        if isinstance(command, Hear):
            self._hear(torch.from_numpy(command.samples))
            return
        self._obey(command)

    def _obey(self, command: Command) -> None:
        """Carry a command out, whoever gave it; say so if that cannot be."""
        try:
            self._carry_out(command)
        except SpeechLMError as error:
            code = error.code if isinstance(error, CannotDo) else "invalid_value"
            name = type(command).__name__
            self._emit(Refused(command=name, code=code, message=str(error)))

    def _carry_out(self, command: Command) -> None:
        match command:
            case Configure():
                self._configure(command.settings)
            case Commit():
                self._commit()
            case ClearInput():
                self._turn_id = None
                self._let_go()
                self._ear.catch_up()
                self._ear.forget()
                if self.settings.turns is None:
                    self._ear.begin()
                self._emit(InputCleared())
            case Respond():
                self._respond(command)
            case Cancel():
                self._cancel(command)
            case AddItem():
                self._add_item(command)
            case DeleteItem():
                self._delete_item(command)
            case Truncate():
                self._truncate(command)

    def drawn(self, drawn: Drawn) -> None:
        """Take a column that the engine drew for this session."""
        if self._answer is not None and drawn.ticket in self._answer.tickets:
            self._answer.drawn(drawn)
            if not self._answer.drawing:
                self._stop_drawing()
            self._after_answer()

    def tick(self) -> None:
        """Let out what is due by now."""
        if self._onset_s is not None and self._clock() - self._called >= MOST_HELD_S:
            self._call_backchannel(self._onset_s)
        if self._answer is not None:
            self._answer.let_out()
            self._after_answer()

    def close(self) -> None:
        """End it; nothing is said any more."""
        self._stop_drawing()
        self._answer = None

    def _make_ear(self) -> Ear:
        turns = self.settings.turns
        threshold = 0.5 if turns is None else turns.threshold
        return Ear(self._model.tokenizer, self.settings.input_rate, threshold)

    def _configure(self, settings: SessionSettings) -> None:
        if settings.input_rate != self._ear.input_rate and self._ear.num_samples:
            raise CannotDo(
                "input_format_fixed",
                "the input's rate is fixed once sound came",
            )
        self._check(settings)
        turns = settings.turns
        if turns is not None and (self._policy is None or turns != self.settings.turns):
            self._policy = turn_policy(self._model, turns)
        self.settings = settings
        if settings.input_rate != self._ear.input_rate:
            self._ear = self._make_ear()
        if turns is not None:
            self._ear.threshold = turns.threshold
            self._ear.keep(turns.prefix_s + turns.start_s)
            if self._turn_id is None and self._onset_s is None:
                self._ear.drop()
        else:
            self._let_go()
            if not self._ear.listening:
                self._ear.catch_up()
                self._ear.begin()

    def _check(self, settings: SessionSettings) -> None:
        """Refuse what this bundle cannot do, before anything relies on it."""
        if settings.sampling is not None and settings.sampling.guidance != 1:
            raise ConfigError(
                f"expected guidance 1 in a conversation, got {settings.sampling.guidance}"
            )
        voices = getattr(self._model.vocoder, "speakers", ())
        if settings.voice is not None and settings.voice not in voices:
            known = ", ".join(voices) or "none beside its own"
            raise ConfigError(f"expected a voice of this bundle ({known}), got {settings.voice!r}")
        self._check_modality(settings.modality)

    def _check_modality(self, modality: str | None) -> None:
        if modality == "text" and self._model.lm.text_tokenizer is None:
            raise ConfigError("expected audio: this bundle says no text")

    def _hear(self, samples: Tensor) -> None:
        for _ in self._ear.push(samples):
            turns = self.settings.turns
            if turns is None:
                continue
            if self._turn_id is not None:
                self._consider_end()
            elif self._onset_s is not None:
                self._consider_interruption(self._onset_s)
            elif self._ear.speech_s >= turns.start_s and self._ear.speech_s > 0:
                onset_s = self._ear.heard_s - self._ear.speech_s
                if turns.interrupt and self._is_heard():
                    self._onset_s = onset_s
                    assert self._answer is not None
                    self._answer.hold()
                    self._ear.begin(onset_s - turns.prefix_s, onset_s)
                    self._consider_interruption(onset_s)
                else:
                    self._begin_turn(onset_s)

    def _is_heard(self) -> bool:
        return self._answer is not None and self._answer.is_heard()

    def _consider_interruption(self, onset_s: float) -> None:
        """Short speech over an answer is a back-channel; longer speech is a turn."""
        turns = self.settings.turns
        assert turns is not None
        if not self._is_heard():  # it was over before it could be interrupted
            self._onset_s = None
            self._begin_turn(onset_s)
        elif self._ear.heard_s - self._ear.silence_s - onset_s >= turns.backchannel_s:
            self._onset_s = None
            self._begin_turn(onset_s)
            self._stop_answer("turn_detected")
        elif self._ear.silence_s >= BACKCHANNEL_END_S:
            self._call_backchannel(onset_s)

    def _call_backchannel(self, onset_s: float) -> None:
        """The answer goes on: what was said over it was no turn."""
        duration_s = self._ear.heard_s - self._ear.silence_s - onset_s
        self._emit(Backchannel(at=self._ear.at(onset_s), duration_s=duration_s))
        self._ear.drop()
        self._let_go()

    def _let_go(self) -> None:
        """No answer waits any more for what becomes of speech over it."""
        if self._onset_s is not None:
            self._onset_s = None
            if self._answer is not None:
                self._answer.release()

    def _begin_turn(self, onset_s: float) -> None:
        turns = self.settings.turns
        assert turns is not None
        if not self._ear.listening:
            self._ear.begin(onset_s - turns.prefix_s, onset_s)
        self._turn_id = self._new_item_id()
        self._emit(SpeechStarted(at=self._ear.at(self._ear.start_s), item_id=self._turn_id))

    def _new_item_id(self) -> str:
        """One that no item has; those of clients may look like ours."""
        return next(name for name in self._item_ids if self.history.index(name) is None)

    def _consider_end(self) -> None:
        ear = self._ear
        if ear.speech_s > 0 or self._policy is None:
            return
        pause = Pause(silence_s=ear.silence_s, units=ear.units, wave=ear.wave)
        if self._policy.ended(pause):
            turns = self.settings.turns
            self._end_turn()
            if turns is not None and turns.respond:
                self._respond_when_free()

    def _end_turn(self) -> None:
        assert self._turn_id is not None
        speech = self._ear.speech
        end_s = self._ear.heard_s if speech is None else speech[1]
        self._emit(SpeechStopped(at=self._ear.at(end_s), item_id=self._turn_id))
        self._enter(self._turn_id)
        self._turn_id = None

    def _enter(self, item_id: str) -> None:
        """Make an item of the open turn."""
        duration_s = self._ear.turn_s
        codes = self._ear.finish()
        previous = self.history.last_id
        self.history.items.append(Item(id=item_id, role="user", codes=codes))
        self._emit(Committed(item_id=item_id, previous_item_id=previous, duration_s=duration_s))

    def _commit(self) -> None:
        self._ear.catch_up()
        if self._turn_id is not None:
            self._end_turn()
        elif self.settings.turns is not None or self._ear.turn_s < LEAST_TURN_S - 1e-6:
            heard_s = 0.0 if self.settings.turns is not None else self._ear.turn_s
            raise CannotDo(
                "input_audio_buffer_commit_empty",
                f"expected at least 100 ms of sound to commit, got {1000 * heard_s:.0f} ms",
            )
        else:
            self._enter(self._new_item_id())
        if self.settings.turns is None and not self._ear.listening:
            self._ear.begin()

    def _respond_when_free(self) -> None:
        if self._answer is not None and not self._answer.over:
            self._respond_after = True
        else:
            self._obey(Respond(response_id=f"resp_{self._num_answers + 1}"))

    def _respond(self, command: Respond) -> None:
        if self._answer is not None and not self._answer.over:
            raise CannotDo(
                "conversation_already_has_active_response",
                f"{self._answer.response_id} is still being given; cancel it first",
            )
        self._check_modality(command.modality)
        lm = self._model.lm
        limit = lm.decoder.config.max_positions
        moves = lm.decoder.config.position in ("rope", "none")
        sampling = self.settings.sampling or SamplingConfig()
        window = min(sampling.window or limit, limit)
        found = self.history.prompt(lm, self.settings.history_turns, window)
        if found is None:
            raise CannotDo(
                "nothing_to_answer",
                "expected something said since the last answer",
            )
        prompt, count = found
        sampling = replace(sampling, max_units=NEVER, window=window if moves else 0)
        settings = self.settings
        if command.max_answer_s is not None:
            settings = replace(settings, max_answer_s=command.max_answer_s)
        if command.modality is not None:
            settings = replace(settings, modality=command.modality)
        item = Item(
            id=self._new_item_id(),
            role="assistant",
            codes=torch.zeros(self._model.tokenizer.num_codebooks, 0, dtype=torch.int64),
        )
        answer = Answer(
            model=self._model,
            settings=settings,
            emit=self._emit,
            clock=self._clock,
            prompt=prompt,
            response_id=command.response_id,
            item=item,
            num_asked=count,
            policy_wait_s=self._ear.silence_s if self.settings.turns is not None else None,
        )
        seed = self.settings.seed + self._num_answers
        tickets = self._engine.add(Request(prompt=prompt, sampling=sampling, seeds=(seed,)))
        previous = self.history.last_id
        self.history.items.append(item)
        self._num_answers += 1
        self._answer = answer
        self._respond_after = False
        answer.begin(tuple(tickets), previous)

    def _after_answer(self) -> None:
        """Whatever an answer that has ended leaves to do."""
        answer = self._answer
        if answer is None or not answer.over:
            return
        self._say_what_was_heard(answer)
        if self._respond_after:
            self._respond_after = False
            self._obey(Respond(response_id=f"resp_{self._num_answers + 1}"))

    def _say_what_was_heard(self, answer: Answer) -> None:
        """The question as text, once, where the LM wrote it down."""
        if answer.heard_text and (asked := self._asked_before(answer.item)):
            self._emit(Transcribed(item_id=asked, text=answer.heard_text))
            answer.heard_text = ""

    def _asked_before(self, item: Item) -> str | None:
        previous = self.history.previous(item.id)
        at = None if previous is None else self.history.index(previous)
        return previous if at is not None and self.history.items[at].role == "user" else None

    def _stop_answer(self, reason: str) -> None:
        if self._answer is not None:
            self._stop_drawing()
            self._answer.stop(reason, self._called)
            self._say_what_was_heard(self._answer)

    def _stop_drawing(self) -> None:
        if self._answer is not None:
            for ticket in self._answer.tickets:
                self._engine.cancel(ticket)
            self._answer.tickets = ()

    def _cancel(self, command: Cancel) -> None:
        answer = self._answer
        if answer is None or answer.over or command.response_id not in (None, answer.response_id):
            raise CannotDo(
                "response_cancel_not_active",
                "no such answer is being given",
            )
        self._stop_answer("client_cancelled")
        self._after_answer()

    def _truncate(self, command: Truncate) -> None:
        item = self.history.answer(command.item_id)
        rate = self._model.tokenizer.frame_rate
        answer = self._answer if self._answer is not None and self._answer.item is item else None
        if answer is not None:
            if not answer.over:
                self._stop_answer("client_cancelled")
            answer.truncated = True
        # Who plays it knows better than the estimate by which it was cut off.
        said = item.codes if item.said is None else item.said
        most_s = (
            said.shape[1] / rate if answer is None else min(said.shape[1] / rate, answer.sent_s)
        )
        heard_s = max(0.0, min(command.heard_s, most_s))
        item.codes = said[:, : whole_frames(heard_s, rate)]
        self._emit(Truncated(item_id=item.id, heard_s=heard_s))

    def _add_item(self, command: AddItem) -> None:
        if command.samples is None:
            raise CannotDo("unsupported_content", "expected sound: this bundle reads no text")
        wave = torch.from_numpy(command.samples)
        try:
            codes = self._model.encode(wave, self.settings.input_rate).codes
        except InputError as error:
            raise CannotDo("invalid_audio", str(error)) from error
        item = Item(id=command.item_id, role=command.role, codes=codes)
        self.history.insert(item, command.after)
        self._emit(ItemAdded(item_id=item.id, previous_item_id=self.history.previous(item.id)))

    def _delete_item(self, command: DeleteItem) -> None:
        item = self.history.remove(command.item_id)
        if self._answer is not None and self._answer.item is item:
            self._stop_answer("client_cancelled")
        self._emit(ItemDeleted(item_id=item.id))
