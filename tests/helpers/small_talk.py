"""Conversations with a small bundle on a clock that moves only when it is told to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from small_bundle import small_bundle

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.config import SamplingConfig
from speechlm.data.human import human_clips
from speechlm.dialogue.hub import Hub
from speechlm.dialogue.messages import Command, Event, Hear, Sound
from speechlm.dialogue.session import TurnSession
from speechlm.dialogue.settings import SessionSettings
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM

Samples = npt.NDArray[np.float32]
Kind = TypeVar("Kind")
RATE = 16_000
PIECE_S = 0.04
"""Of sound that comes at once, and of time that passes."""
BRIEF_S = 1.2
"""Length of answers."""


@functools.cache
def talker() -> SpeechLM:
    """It answers with ever other noises. Do not change it."""
    whole = small_bundle()
    decoder = Decoder(whole.lm.decoder.config)
    weights = whole.lm.decoder.state_dict()
    decoder.load_state_dict(
        {name: 12 * weight if weight.ndim > 1 else weight for name, weight in weights.items()}
    )
    lm = UnitLM(decoder, whole.lm.vocabulary, whole.lm.layout)
    return SpeechLM(whole.tokenizer, lm, whole.vocoder)


def settings(**changes: Any) -> SessionSettings:
    """16 kHz; answers are drawn at random and do not end before their longest, about a second."""
    shown: dict[str, Any] = dict(
        input_rate=RATE,
        output_rate=RATE,
        sampling=SamplingConfig(temperature=0.5),
        max_answer_s=BRIEF_S,
    )
    return SessionSettings(**{**shown, **changes})


@functools.cache
def _clip(word: str) -> Samples:
    wave = load_audio(human_clips("answers")[word].path, RATE)
    loud = (wave.abs() > 0.02).nonzero()[:, 0]
    return wave[int(loud[0]) : int(loud[-1])].numpy()


def speech(*words: str) -> Samples:
    """A person says these words without a pause, at 16 kHz."""
    return np.concatenate([_clip(word) for word in words])


QUESTION = ("eleven", "nine")
INTERRUPTION = ("eleven", "seven", "nine", "five")
MURMUR = ("two",)


def silence(seconds: float, rate: int = RATE) -> Samples:
    return np.zeros(round(seconds * rate), np.float32)


class Talk:
    """A hub with sessions; each event that they say is kept."""

    def __init__(
        self, model: SpeechLM | None = None, first: SessionSettings | None = None, **hub: Any
    ) -> None:
        self.now = 0.0
        self.said: dict[str, list[Event]] = {}
        self.at: dict[int, float] = {}
        """When an event was said, by its ``id()``."""
        self.hub = Hub(model or talker(), self._take, clock=lambda: self.now, **hub)
        self.open("a", first or settings())

    def _take(self, name: str, event: Event) -> None:
        self.said[name].append(event)
        self.at[id(event)] = self.now

    def open(self, name: str, wanted: SessionSettings) -> None:
        self.said[name] = []
        self.hub.open(name, wanted)

    @property
    def events(self) -> list[Event]:
        """Of the first session."""
        return self.said["a"]

    @property
    def session(self) -> TurnSession:
        """The first one."""
        found = self.hub.sessions["a"]
        assert isinstance(found, TurnSession)
        return found

    def do(self, *commands: Command, name: str = "a") -> list[Event]:
        """Give commands; what was said to them."""
        before = len(self.said[name])
        for command in commands:
            self.hub.handle(name, command)
        return self.said[name][before:]

    def work(self) -> None:
        """All that can be computed now."""
        while self.hub.step():
            pass

    def hear(self, samples: Samples, name: str = "a") -> None:
        """Sound comes in real time."""
        for piece in np.split(samples, range(640, len(samples), 640)):
            self.hub.handle(name, Hear(samples=piece))
            self.work()
            self.now += len(piece) / RATE

    def wait(self, seconds: float) -> None:
        """Time passes without sound."""
        for _ in range(round(seconds / PIECE_S)):
            self.work()
            self.now += PIECE_S

    def ask(self, *words: str) -> None:
        """A question, and silence until it has ended."""
        self.hear(np.concatenate([speech(*(words or QUESTION)), silence(0.64)]))

    def all(self, kind: type[Kind], name: str = "a") -> list[Kind]:
        return [event for event in self.said[name] if isinstance(event, kind)]

    def last(self, kind: type[Kind], name: str = "a") -> Kind:
        return self.all(kind, name)[-1]

    def until(self, done: Callable[[], bool], at_most_s: float = 10.0) -> None:
        """Silence comes until something has happened."""
        limit = self.now + at_most_s
        while not done():
            assert self.now < limit, "it did not happen"
            self.hear(silence(PIECE_S))

    def kinds(self, name: str = "a") -> list[str]:
        """What was said, runs of the same once."""
        names = [type(event).__name__ for event in self.said[name]]
        return [kind for kind, before in zip(names, [None, *names], strict=False) if kind != before]

    def sound(self, response_id: str | None = None, name: str = "a") -> Samples:
        """All sound of an answer, or of all."""
        pieces = [
            piece.samples
            for piece in self.all(Sound, name)
            if response_id in (None, piece.response_id)
        ]
        return np.concatenate([silence(0), *pieces])


def wave(samples: Samples) -> torch.Tensor:
    return torch.from_numpy(samples)
