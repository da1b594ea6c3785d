"""Conversations for asyncio: what a server holds, whatever runs the model behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from speechlm.dialogue.messages import Command, Event, Samples
from speechlm.dialogue.settings import SessionSettings
from speechlm.errors import SpeechLMError


class Busy(SpeechLMError):
    """No session is free, or the worker is being rebuilt; try again later."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
        """``session_limit_reached``, ``draining`` or ``worker_unavailable``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleInfo:
    """What a bundle can do, as a client needs to know it."""

    name: str
    """Of its folder."""
    fingerprint: str
    kind: Literal["turns", "duplex"]
    """Answers whole turns, or listens and speaks at once."""
    sample_rate: int
    """What the vocoder gives, Hz; sessions may ask for others."""
    frame_s: float
    """Length of a frame of units."""
    writes_text: bool
    """Answers come with text."""
    transcribes: bool
    """It writes down what it hears."""
    speaks_text: bool
    """It can read text aloud."""
    voices: tuple[str, ...] = ()
    """Names of voices that a session may choose, beside the bundle's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechRequest:
    """Something to be read aloud, outside of any conversation."""

    text: str | None = None
    """What to say, where :attr:`BundleInfo.speaks_text`."""
    units: tuple[tuple[int, ...], ...] | None = None
    """Or the units of it, K codebooks of F frames."""
    voice: str | None = None
    """A voice that the vocoder knows; None for the bundle's."""
    speed: float = 1.0
    """How many times as fast as the units are; frames are left out or repeated."""
    sample_rate: int = 24_000
    """Of the sound that is wanted, Hz."""
    seed: int = 0


class Session(Protocol):
    """One conversation."""

    @property
    def id(self) -> str: ...

    def send(self, command: Command) -> None:
        """Hand a command over; never waits. After the session has ended it is let pass."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """What it says, until ``Failed`` or :meth:`close`; iterated once."""
        ...

    @property
    def backlog_s(self) -> float:
        """Input that was sent and not heard yet."""
        ...

    async def close(self) -> None: ...


class DialogueService(Protocol):
    """Sessions of one bundle."""

    @property
    def info(self) -> BundleInfo: ...

    @property
    def num_sessions(self) -> int: ...

    async def open(self, settings: SessionSettings) -> Session:
        """Begin a conversation.

        Raises:
            Busy: At once, when it cannot.
        """
        ...

    async def probe(self) -> float:
        """Run one real frame through the model; milliseconds that it took.

        Raises:
            Busy: It does not answer in time.
        """
        ...

    def speak(self, request: SpeechRequest) -> AsyncIterator[Samples]:
        """Read something aloud: pieces of sound as they come, the first one small.

        Raises:
            Busy: At the first piece: there is no place for it.
            InputError: At the first piece: the bundle cannot say this.
        """
        ...

    async def transcribe(self, samples: Samples, sample_rate: int) -> str:
        """Write down what a recording says, where :attr:`BundleInfo.transcribes`.

        Raises:
            Busy: There is no place for it.
            InputError: The bundle cannot write it down.
        """
        ...
