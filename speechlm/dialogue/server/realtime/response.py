"""One answer as events: its beginning, its pieces, its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from speechlm.dialogue.messages import ResponseEnded, Samples
from speechlm.dialogue.server.realtime.client_events import JSON
from speechlm.dialogue.server.realtime.formats import AudioFormat
from speechlm.dialogue.server.realtime.items import message, server_event


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What ``response.create`` asked for, until the session has begun."""

    metadata: dict[str, str] | None = None
    max_output_tokens: int | str = "inf"


@dataclass(kw_only=True, slots=True)
class Response:
    """An answer that is being given."""

    id: str
    item_id: str
    modality: Literal["audio", "text"]
    format: AudioFormat
    voice: str
    conversation_id: str
    wanted: Wanted
    samples: int = 0
    """Sound so far."""
    text: list[str] = field(default_factory=list)

    def started(self, previous_item_id: str | None) -> list[JSON]:
        item = message(self.item_id, "assistant", [], "in_progress")
        return [
            server_event("response.created", response=self._shown("in_progress")),
            server_event(
                "response.output_item.added", response_id=self.id, output_index=0, item=item
            ),
            server_event("conversation.item.added", previous_item_id=previous_item_id, item=item),
            self._event("response.content_part.added", part=self._part("")),
        ]

    def sounded(self, samples: Samples) -> JSON:
        self.samples += len(samples)
        return self._event("response.output_audio.delta", delta=self.format.encode(samples))

    def said(self, delta: str) -> JSON:
        self.text.append(delta)
        return self._event(f"{self._text_kind}.delta", delta=delta)

    def ended(self, how: ResponseEnded, previous_item_id: str | None) -> tuple[JSON, list[JSON]]:
        """The finished item, and the events that say so."""
        text = how.text or "".join(self.text)
        done = how.status == "completed"
        content = (
            {"type": "output_audio", "transcript": text}
            if self.modality == "audio"
            else {"type": "output_text", "text": text}
        )
        item = message(self.item_id, "assistant", [content], "completed" if done else "incomplete")
        events = []
        if self.modality == "audio":
            events.append(self._event("response.output_audio.done"))
            events.append(self._event(f"{self._text_kind}.done", transcript=text))
        else:
            events.append(self._event(f"{self._text_kind}.done", text=text))
        events += [
            self._event("response.content_part.done", part=self._part(text)),
            server_event(
                "response.output_item.done", response_id=self.id, output_index=0, item=item
            ),
            server_event("conversation.item.done", previous_item_id=previous_item_id, item=item),
            server_event("response.done", response=self._shown(how.status, how, item)),
        ]
        return item, events

    @property
    def _text_kind(self) -> str:
        spoken = self.modality == "audio"
        return "response.output_audio_transcript" if spoken else "response.output_text"

    def _part(self, text: str) -> JSON:
        if self.modality == "audio":
            return {"type": "audio", "transcript": text}
        return {"type": "text", "text": text}

    def _event(self, kind: str, **fields: object) -> JSON:
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        return server_event(kind, response_id=self.id, **place, **fields)

    def _shown(
        self, status: str, how: ResponseEnded | None = None, item: JSON | None = None
    ) -> JSON:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": how and _details(how),
            "output": [item] if item else [],
            "conversation_id": self.conversation_id,
            "output_modalities": [self.modality],
            "max_output_tokens": self.wanted.max_output_tokens,
            "audio": {"output": {"format": self.format.shown(), "voice": self.voice}},
            "usage": how and self._usage(how),
            "metadata": self.wanted.metadata,
        }

    def _usage(self, how: ResponseEnded) -> JSON:
        """A token is a unit."""
        spoken = self.modality == "audio"
        return {
            "total_tokens": how.input_units + how.output_units,
            "input_tokens": how.input_units,
            "output_tokens": how.output_units,
            "input_token_details": {
                "audio_tokens": how.input_units,
                "text_tokens": 0,
                "cached_tokens": 0,
            },
            "output_token_details": {
                "audio_tokens": how.output_units if spoken else 0,
                "text_tokens": 0 if spoken else how.output_units,
            },
        }


def _details(how: ResponseEnded) -> JSON | None:
    if how.status == "completed":
        return None
    if how.status == "failed":
        error = {"type": "server_error", "code": "answer_failed", "message": how.reason or ""}
        return {"type": "failed", "error": error}
    return {"type": how.status, "reason": how.reason}
