"""From the client: what it says becomes commands for the session, or is answered here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from speechlm.dialogue.messages import (
    AddItem,
    Cancel,
    ClearInput,
    Command,
    Commit,
    Configure,
    DeleteItem,
    Hear,
    Respond,
    Samples,
    Truncate,
)
from speechlm.dialogue.server.realtime.client_events import (
    JSON,
    AppendAudio,
    CancelResponse,
    ClearAudio,
    ClearOutput,
    ClientEvent,
    CommitAudio,
    CreateItem,
    CreateResponse,
    Message,
    ProtocolError,
    RemoveItem,
    RetrieveItem,
    TruncateItem,
    UpdateSession,
)
from speechlm.dialogue.server.realtime.items import Kept, new_id, server_event
from speechlm.dialogue.server.realtime.response import Wanted
from speechlm.dialogue.server.realtime.state import Asked, State, item_events
from speechlm.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What follows from something that a client said."""

    commands: list[Command] = field(default_factory=list)
    """For the session, in this order."""
    events: list[JSON] = field(default_factory=list)
    """For the client, in this order."""
    drop_sound: bool = False
    """Sound that waits for the client shall not be sent."""


class ClientSide:
    """Carries out checked events; raises ProtocolError for those that cannot be."""

    def __init__(self, state: State) -> None:
        self._state = state

    def feed(self, event: ClientEvent) -> Outcome:
        match event:
            case AppendAudio():
                self._state.heard = True
                samples = self._decode(event.audio, "audio")
                return Outcome(commands=[Hear(samples=samples)] if len(samples) else [])
            case CommitAudio():
                return self._forward(Commit(), event)
            case ClearAudio():
                return self._forward(ClearInput(), event)
            case UpdateSession():
                return self._update(event)
            case CreateItem():
                return self._create_item(event)
            case RetrieveItem():
                kept = self._find(event.item_id, "item_retrieve_invalid_item_id")
                return Outcome(
                    events=[server_event("conversation.item.retrieved", item=kept.shown)]
                )
            case RemoveItem():
                return self._remove(event)
            case TruncateItem():
                return self._truncate(event)
            case CreateResponse():
                return self._respond(event)
            case CancelResponse():
                return self._forward(Cancel(response_id=event.response_id), event)
            case ClearOutput():
                extra = [
                    server_event("output_audio_buffer.cleared", response_id=one)
                    for one in self._state.responses
                    if self._state.configuration.wants_extensions
                ]
                return Outcome(events=extra, drop_sound=True)
        raise AssertionError(type(event))

    def _update(self, event: UpdateSession) -> Outcome:
        before = self._state.configuration
        self._state.configuration = before.updated(
            event.session,
            rates_fixed=self._state.heard or self._state.spoken,
            voice_fixed=self._state.spoken,
        )
        settings = self._state.configuration.settings()
        commands: list[Command] = []
        if settings != before.settings():
            commands.append(Configure(settings=settings))
            self._state.ask(commands[0], Asked(event_id=event.event_id))
        return Outcome(
            commands=commands,
            events=[server_event("session.updated", session=self._state.configuration.shown)],
        )

    def _create_item(self, event: CreateItem) -> Outcome:
        item_id = event.item.id or new_id("item")
        if item_id in self._state.items or item_id in self._state.added:
            raise ProtocolError(
                f"expected a new id, got {item_id!r}, which an item has already",
                code="invalid_value",
                param="item.id",
            )
        after = event.previous_item_id
        if after not in (None, "root") and after not in self._state.items:
            raise ProtocolError(
                f"expected the id of an item, or 'root', got {after!r}, which there is none of",
                code="invalid_value",
                param="previous_item_id",
            )
        shown = {**event.item.given(), "id": item_id, "object": "realtime.item"}
        shown["status"] = "completed"
        if not isinstance(event.item, Message) or event.item.role == "system":
            kept = Kept(shown=shown, in_session=False)
            previous = self._state.items.add(kept, after)
            return Outcome(events=item_events(kept, previous))
        samples, text = self._content(event.item)
        side = "output" if event.item.role == "assistant" else "input"
        shown["content"] = [_shown_part(part, side) for part in shown["content"]]
        rate = self._state.configuration.input_format.rate
        duration = 0.0 if samples is None else len(samples) / rate
        self._state.added[item_id] = (
            Kept(shown=shown, in_session=True, duration_s=duration),
            after,
        )
        command = AddItem(
            item_id=item_id,
            role="user" if event.item.role == "user" else "assistant",
            samples=samples,
            text=text,
            after=self._state.items.known_to_session(after),
        )
        return self._forward(command, event, key=item_id)

    def _content(self, item: Message) -> tuple[Samples | None, str | None]:
        """A message's sound, or its text."""
        sounds, texts = [], []
        for number, part in enumerate(item.content):
            where = f"item.content.{number}"
            if part.type == "input_image":
                raise ProtocolError(
                    "expected sound or text, got an image, which no SpeechLM sees",
                    code="invalid_value",
                    param=f"{where}.type",
                )
            if part.audio is not None and item.role == "user":
                sounds.append(self._decode(part.audio, f"{where}.audio"))
            elif (text := part.text if part.text is not None else part.transcript) is not None:
                texts.append(text)
        if bool(sounds) == bool(texts):
            what = "both" if sounds else "neither"
            raise ProtocolError(
                f"expected sound or text in a message, got {what}; send one, as items of their own",
                code="invalid_value",
                param="item.content",
            )
        if sounds:
            return np.concatenate(sounds), None
        return None, " ".join(texts)

    def _remove(self, event: RemoveItem) -> Outcome:
        kept = self._find(event.item_id, "item_delete_invalid_item_id")
        if kept.in_session:
            return self._forward(DeleteItem(item_id=event.item_id), event, key=event.item_id)
        self._state.items.remove(event.item_id)
        return Outcome(events=[server_event("conversation.item.deleted", item_id=event.item_id)])

    def _truncate(self, event: TruncateItem) -> Outcome:
        kept = self._find(event.item_id, "item_truncate_invalid_item_id")
        content = kept.shown.get("content")
        # Until its answer has ended an item shows no content; it may be cut already.
        spoken = kept.shown.get("role") == "assistant" and (
            not content or content[0]["type"] == "output_audio"
        )
        if not spoken or not kept.in_session:
            raise ProtocolError(
                "expected an answer's item with sound, got another; only those can be truncated",
                code="item_truncate_invalid_item_id",
                param="item_id",
            )
        if event.content_index:
            raise ProtocolError(
                f"expected content_index 0, an answer has one part, got {event.content_index}",
                code="invalid_value",
                param="content_index",
            )
        heard_s = event.audio_end_ms / 1000
        return self._forward(
            Truncate(item_id=event.item_id, heard_s=heard_s), event, key=event.item_id
        )

    def _respond(self, event: CreateResponse) -> Outcome:
        choices = event.response
        response_id = new_id("resp")
        command = Respond(response_id=response_id)
        wanted = Wanted(max_output_tokens=self._state.configuration.shown["max_output_tokens"])
        if choices is not None:
            for name, value in (("conversation", choices.conversation), ("input", choices.input)):
                if value is not None and value != "auto":
                    raise ProtocolError(
                        f"expected an answer within the conversation, got {name}; leave it out",
                        code="invalid_value",
                        param=f"response.{name}",
                    )
            longest = choices.max_output_tokens
            if longest is not None:
                wanted = Wanted(max_output_tokens=longest)
            wanted = Wanted(metadata=choices.metadata, max_output_tokens=wanted.max_output_tokens)
            modality: Any = self._state.configuration.modalities(choices, "response")[0]
            command = Respond(
                response_id=response_id,
                modality=modality if choices.output_modalities else None,
                max_answer_s=None
                if longest is None
                else self._state.configuration.longest_answer_s(longest),
            )
        self._state.wanted[response_id] = wanted
        return self._forward(command, event, key=response_id)

    def _forward(self, command: Command, event: ClientEvent, key: str | None = None) -> Outcome:
        self._state.ask(command, Asked(event_id=event.event_id, key=key))
        return Outcome(commands=[command])

    def _find(self, item_id: str, code: str) -> Kept:
        if item_id not in self._state.items:
            raise ProtocolError(
                f"expected the id of an item, got {item_id!r}, which there is none of",
                code=code,
                param="item_id",
            )
        return self._state.items[item_id]

    def _decode(self, audio: str, param: str) -> Samples:
        try:
            return self._state.configuration.input_format.decode(audio)
        except InputError as error:
            raise ProtocolError(str(error), code="invalid_value", param=param) from error


def _shown_part(part: JSON, side: str) -> JSON:
    """Without its sound; the beta names of kinds, which some clients still send, made new."""
    kind = part["type"].rpartition("_")[2]
    rest = {key: value for key, value in part.items() if key not in ("audio", "type")}
    return {"type": f"{side}_{kind}", **rest}
