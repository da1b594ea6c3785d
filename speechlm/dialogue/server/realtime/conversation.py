"""The state behind the events: what a client says becomes commands, what a session says events.

No socket and no clock: the same calls give the same events, but for their ids.
"""

from __future__ import annotations

from dataclasses import replace

from speechlm.dialogue.messages import Command, Event, Truncate
from speechlm.dialogue.server.realtime.client_events import (
    JSON,
    Dialect,
    ProtocolError,
    check,
    read_json,
)
from speechlm.dialogue.server.realtime.client_side import ClientSide, Outcome
from speechlm.dialogue.server.realtime.configuration import Configuration
from speechlm.dialogue.server.realtime.dialect import from_beta, param_in_beta, to_beta
from speechlm.dialogue.server.realtime.inbox import Inbox
from speechlm.dialogue.server.realtime.items import server_event
from speechlm.dialogue.server.realtime.session_side import SessionSide
from speechlm.dialogue.server.realtime.state import Asked, State, error_event


class Conversation:
    """One connection's session, items and answers, in the client's dialect.

    Args:
        configuration: What holds at first.
        inbox: Knows which sound was dropped before the session heard it.
        dialect: Names and shapes of events.
    """

    def __init__(self, configuration: Configuration, inbox: Inbox, dialect: Dialect = "ga") -> None:
        self._state = State(configuration, inbox)
        self._client = ClientSide(self._state)
        self._session = SessionSide(self._state)
        self._dialect = dialect

    @property
    def configuration(self) -> Configuration:
        return self._state.configuration

    @property
    def interrupts(self) -> bool:
        """Whether the user's speech ends an answer."""
        turns = self.configuration.settings().turns
        return turns is not None and turns.interrupt

    def opened(self) -> list[JSON]:
        """The first event."""
        return self.said(server_event("session.created", session=self.configuration.shown))

    def feed(self, text: str) -> Outcome:
        """What follows from a client's message; an ``error`` event where it cannot be used."""
        event_id = None
        try:
            data = read_json(text)
            event = check(from_beta(data) if self._dialect == "beta" else data)
            event_id = event.event_id
            outcome = self._client.feed(event)
        except ProtocolError as error:
            param = error.param
            if param and self._dialect == "beta":
                param = param_in_beta(param)
            event_id = error.event_id or event_id
            wrong = error_event(error.code, str(error), param=param, event_id=event_id)
            outcome = Outcome(events=[wrong])
        return replace(outcome, events=self.said(*outcome.events))

    def tell(self, event: Event) -> list[JSON]:
        """What the client is told of what the session said."""
        return self.said(*self._session.tell(event))

    def cut_unsent(self, response_id: str, sound_bytes: int) -> list[Command]:
        """Let the session know that the last of an answer never left: nobody heard it."""
        response = self._state.responses.get(response_id)
        if response is None or not sound_bytes:
            return []
        response.samples -= sound_bytes // response.format.bytes_per_sample
        heard_s = response.samples / response.format.rate
        command = Truncate(item_id=response.item_id, heard_s=heard_s)
        self._state.ask(command, Asked(event_id=None, key=response.item_id, silent=True))
        return [command]

    def said(self, *events: JSON) -> list[JSON]:
        """Events in the client's dialect, without those that it does not have."""
        if self._dialect == "ga":
            return list(events)
        return [one for event in events if (one := to_beta(event)) is not None]
