"""From the session: what it says, in the order and the shapes that clients expect."""

from __future__ import annotations

from speechlm.dialogue.messages import (
    Backchannel,
    Committed,
    Event,
    Failed,
    InputCleared,
    ItemAdded,
    ItemDeleted,
    Refused,
    ResponseEnded,
    ResponseStarted,
    Sound,
    SpeechStarted,
    SpeechStopped,
    Text,
    Transcribed,
    Truncated,
    TurnMeasured,
)
from speechlm.dialogue.server.realtime.client_events import JSON
from speechlm.dialogue.server.realtime.items import Kept, message, server_event
from speechlm.dialogue.server.realtime.response import Response, Wanted
from speechlm.dialogue.server.realtime.state import State, error_event, item_events


class SessionSide:
    """Keeps the books of items and answers while it tells of them."""

    def __init__(self, state: State) -> None:
        self._state = state

    def tell(self, event: Event) -> list[JSON]:
        match event:
            case SpeechStarted():
                at = self._milliseconds(event.at)
                kind = "input_audio_buffer.speech_started"
                return [server_event(kind, audio_start_ms=at, item_id=event.item_id)]
            case SpeechStopped():
                at = self._milliseconds(event.at)
                kind = "input_audio_buffer.speech_stopped"
                return [server_event(kind, audio_end_ms=at, item_id=event.item_id)]
            case Committed():
                return self._committed(event)
            case InputCleared():
                self._state.answered("ClearInput")
                return [server_event("input_audio_buffer.cleared")]
            case ResponseStarted():
                return self._started(event)
            case Sound():
                self._state.spoken = True
                response = self._state.responses.get(event.response_id)
                if response is None or response.modality == "text" or not len(event.samples):
                    return []
                return [response.sounded(event.samples)]
            case Text():
                response = self._state.responses.get(event.response_id)
                return [response.said(event.delta)] if response and event.delta else []
            case ResponseEnded():
                return self._ended(event)
            case Transcribed():
                return self._transcribed(event)
            case ItemAdded():
                self._state.answered("AddItem", event.item_id)
                kept, after = self._state.added.pop(event.item_id)
                return item_events(kept, self._state.items.add(kept, after))
            case ItemDeleted():
                self._state.answered("DeleteItem", event.item_id)
                self._state.items.remove(event.item_id)
                return [server_event("conversation.item.deleted", item_id=event.item_id)]
            case Truncated():
                return self._truncated(event)
            case Refused():
                return self._refused(event)
            case Failed():
                return [error_event(event.code, event.message, kind="server_error")]
            case TurnMeasured():
                return self._extension("x.turn_measured", figures=event.figures)
            case Backchannel():
                at = self._milliseconds(event.at)
                duration = round(event.duration_s * 1000)
                return self._extension("x.backchannel", audio_start_ms=at, duration_ms=duration)

    def _committed(self, event: Committed) -> list[JSON]:
        self._state.answered("Commit")
        shown = message(event.item_id, "user", [{"type": "input_audio", "transcript": None}])
        kept = Kept(shown=shown, in_session=True, duration_s=event.duration_s)
        previous = self._state.items.add(kept)
        committed = server_event(
            "input_audio_buffer.committed", item_id=event.item_id, previous_item_id=previous
        )
        if self._state.inbox.dropped_samples:
            rate = self._state.configuration.input_format.rate
            committed["x_dropped_ms"] = round(1000 * self._state.inbox.dropped_samples / rate)
        events = [committed, *item_events(kept, previous)]
        if (
            self._state.configuration.wants_transcripts
            and not self._state.configuration.info.transcribes
        ):
            name = self._state.configuration.info.name
            error = {
                "type": "invalid_request_error",
                "code": "transcription_unavailable",
                "message": f"{name} does not write down what it hears; ask for no transcription",
                "param": None,
            }
            kind = "conversation.item.input_audio_transcription.failed"
            events.append(server_event(kind, item_id=event.item_id, content_index=0, error=error))
        return events

    def _started(self, event: ResponseStarted) -> list[JSON]:
        self._state.answered("Respond", event.response_id)
        session = self._state.configuration.shown
        response = Response(
            id=event.response_id,
            item_id=event.item_id,
            modality=event.modality,
            format=self._state.configuration.output_format,
            voice=session["audio"]["output"]["voice"],
            conversation_id=self._state.conversation_id,
            wanted=self._state.wanted.pop(
                event.response_id, Wanted(max_output_tokens=session["max_output_tokens"])
            ),
        )
        self._state.responses[event.response_id] = response
        shown = message(event.item_id, "assistant", [], "in_progress")
        return response.started(self._state.items.add(Kept(shown=shown, in_session=True)))

    def _ended(self, event: ResponseEnded) -> list[JSON]:
        if event.reason == "client_cancelled":
            self._state.answered("Cancel")
        begun: list[JSON] = []
        if event.response_id not in self._state.responses:
            # It failed before it could begin; a client waits for both ends.
            begun = self._started(
                ResponseStarted(
                    response_id=event.response_id,
                    item_id=event.item_id,
                    previous_item_id=self._state.items.last,
                    modality=self._state.configuration.settings().modality,
                )
            )
        response = self._state.responses.pop(event.response_id)
        known = event.item_id in self._state.items
        previous = self._state.items.before(event.item_id) if known else self._state.items.last
        item, events = response.ended(event, previous)
        if known:
            kept = self._state.items[event.item_id]
            kept.shown, kept.duration_s = item, event.said_s
        return begun + events

    def _transcribed(self, event: Transcribed) -> list[JSON]:
        if event.item_id not in self._state.items:
            return []
        kept = self._state.items[event.item_id]
        content = [{"type": "input_audio", "transcript": event.text}]
        kept.shown = {**kept.shown, "content": content}
        if not self._state.configuration.wants_transcripts:
            return []
        kind = "conversation.item.input_audio_transcription.completed"
        usage = {"type": "duration", "seconds": kept.duration_s}
        return [
            server_event(
                kind, item_id=event.item_id, content_index=0, transcript=event.text, usage=usage
            )
        ]

    def _truncated(self, event: Truncated) -> list[JSON]:
        asked = self._state.answered("Truncate", event.item_id)
        if event.item_id in self._state.items:
            kept = self._state.items[event.item_id]
            kept.duration_s = event.heard_s
            # Which words were heard is not known: better none than some that were not.
            content = [{"type": "output_audio", "transcript": ""}]
            kept.shown = {**kept.shown, "content": content}
        if asked is not None and asked.silent:
            return []
        kind = "conversation.item.truncated"
        heard = round(event.heard_s * 1000)
        return [server_event(kind, item_id=event.item_id, content_index=0, audio_end_ms=heard)]

    def _refused(self, event: Refused) -> list[JSON]:
        asked = self._state.answered(event.command)
        if asked is not None and asked.silent:
            return []
        if asked is not None and asked.key is not None:
            self._state.added.pop(asked.key, None)
            self._state.wanted.pop(asked.key, None)
        text = event.message
        if event.code == "response_cancel_not_active":
            # Some clients know this one by how it begins.
            text = f"Cancellation failed: {text}"
        return [error_event(event.code, text, event_id=asked.event_id if asked else None)]

    def _milliseconds(self, at: int) -> int:
        return round(
            1000 * self._state.inbox.sent_at(at) / self._state.configuration.input_format.rate
        )

    def _extension(self, kind: str, **fields: object) -> list[JSON]:
        return [server_event(kind, **fields)] if self._state.configuration.wants_extensions else []
