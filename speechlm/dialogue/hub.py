"""All sessions of one bundle: they share one engine, and so one batched step of the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from speechlm.bundle import SpeechLM
from speechlm.dialogue.duplex import DuplexSession
from speechlm.dialogue.messages import Command, Event, Failed
from speechlm.dialogue.session import TurnSession
from speechlm.dialogue.settings import SessionSettings
from speechlm.errors import ConfigError, InputError
from speechlm.generation.engine import Drawn, Engine
from speechlm.layouts.live import is_duplex

LOG = logging.getLogger(__name__)
MAX_SESSIONS = 16

Emit = Callable[[str, Event], None]
"""Takes a session's id and what it says."""


class HubSession(Protocol):
    """What the hub runs: conversations in turns, or duplex ones."""

    @property
    def tickets(self) -> tuple[int, ...]:
        """What the engine draws for it."""
        ...

    @property
    def wait_s(self) -> float | None:
        """When ``tick`` has something to do, s from now; None: not by waiting."""
        ...

    def handle(self, command: Command) -> None: ...

    def drawn(self, drawn: Drawn) -> None: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


class Hub:
    """Runs sessions; one thread alone calls it.

    >>> hub = Hub(model, emit=lambda session, event: print(session, event))  # doctest: +SKIP
    >>> hub.open("a", SessionSettings())  # doctest: +SKIP
    >>> hub.handle("a", Hear(samples=samples))  # doctest: +SKIP
    >>> while hub.step():  # doctest: +SKIP
    ...     pass
    """

    def __init__(
        self,
        model: SpeechLM,
        emit: Emit,
        *,
        max_sessions: int = MAX_SESSIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            model: The bundle.
            emit: Is called with all that sessions say.
            max_sessions: At once; memory is kept for so many.
            clock: Seconds; another one than the machine's where time is simulated.

        Raises:
            ConfigError: The bundle's layout answers no questions.
        """
        self.model = model
        self.sessions: dict[str, HubSession] = {}
        self._emit = emit
        self._clock = clock
        names = {field.name for field in model.lm.layout.fields}
        self.duplex = is_duplex(model.lm.layout)
        if not self.duplex and "question" not in names:
            raise ConfigError(
                f"the layout {model.lm.layout.name!r} answers no questions; a bundle to talk with "
                "has one with question and answer, or duplex"
            )
        self._max_sessions = max_sessions
        self._engine = self._make_engine()

    def open(self, session: str, settings: SessionSettings) -> None:
        """Begin a conversation.

        Raises:
            InputError: The bundle cannot do what the settings ask for, the id is taken, or there
                are too many.
        """
        if session in self.sessions or len(self.sessions) >= self._max_sessions:
            raise InputError(
                f"expected a new session, at most {self._max_sessions} at once, got {session!r}"
            )

        def emit(event: Event) -> None:
            self._emit(session, event)

        kind = DuplexSession if self.duplex else TurnSession
        self.sessions[session] = kind(self.model, self._engine, settings, emit, self._clock)

    def close(self, session: str) -> None:
        """End a conversation; one that is not there is let pass."""
        if (found := self.sessions.pop(session, None)) is not None:
            found.close()

    def handle(self, session: str, command: Command) -> None:
        """Hand a command to a session; one that is not there is let pass."""
        if (found := self.sessions.get(session)) is not None:
            self._guard(session, lambda: found.handle(command))

    def step(self) -> bool:
        """Run the model once for all who wait for it, and let out what is due.

        Returns:
            Whether there is more to do at once.
        """
        if self._engine.busy:
            try:
                drawn = self._engine.step()
            except Exception as error:
                self._give_up(error)
                return False
            owners = {ticket: name for name, one in self.sessions.items() for ticket in one.tickets}
            for column in drawn:
                name = owners.get(column.ticket)
                if name is not None and (found := self.sessions.get(name)) is not None:
                    self._guard(name, lambda found=found, column=column: found.drawn(column))  # type: ignore[misc]
        for name, one in list(self.sessions.items()):
            self._guard(name, one.tick)
        return self._engine.busy

    @property
    def wait_s(self) -> float | None:
        """When :meth:`step` has something to do, s from now; None: not before a command."""
        if self._engine.busy:
            return 0.0
        waits = [one.wait_s for one in self.sessions.values()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _make_engine(self) -> Engine:
        limit = self.model.lm.decoder.config.max_positions
        return Engine(
            self.model.lm,
            num_positions=self._max_sessions * (limit + 64),
            max_batch=self._max_sessions,
            weights=self.model.weights,
        )

    def _guard(self, session: str, work: Callable[[], None]) -> None:
        """What breaks one session ends that one alone."""
        try:
            work()
        except Exception as error:
            LOG.exception("a session broke")
            self._end(session, error)

    def _end(self, session: str, error: Exception) -> None:
        found = self.sessions.pop(session, None)
        if found is not None:
            try:
                found.close()
            except Exception:  # it is broken already
                LOG.exception("a broken session could not be closed")
            message = f"{type(error).__name__}: {error}"
            self._emit(session, Failed(code="session_failed", message=message))

    def _give_up(self, error: Exception) -> None:
        """The engine broke: nothing that it was drawing can go on."""
        LOG.exception("the engine broke")
        for session in list(self.sessions):
            self._end(session, error)
        self._engine = self._make_engine()
