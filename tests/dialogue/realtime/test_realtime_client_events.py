"""What clients send: all that OpenAI's types allow is taken, all else is answered, never fatal."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlm.dialogue.server.realtime.client_events import (
    EVENTS,
    MAX_AUDIO_CHARACTERS,
    ProtocolError,
    check,
    read_json,
)

USER = {
    "type": "message",
    "role": "user",
    "id": "item_1",
    "object": "realtime.item",
    "status": "completed",
    "content": [
        {"type": "input_audio", "audio": "AAAA", "transcript": "hello"},
        {"type": "input_text", "text": "hello"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
    ],
}
SESSION = {
    "type": "realtime",
    "model": "gpt-realtime",
    "instructions": "be kind",
    "output_modalities": ["audio"],
    "max_output_tokens": "inf",
    "include": ["item.input_audio_transcription.logprobs"],
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {}}],
    "tool_choice": {"type": "function", "name": "f"},
    "parallel_tool_calls": True,
    "prompt": {"id": "p", "version": "1", "variables": {}},
    "reasoning": {"effort": "low"},
    "tracing": "auto",
    "truncation": {"type": "retention_ratio", "retention_ratio": 0.5},
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "noise_reduction": {"type": "near_field"},
            "transcription": {"model": "whisper-1", "language": "en", "prompt": "x"},
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 500,
                "idle_timeout_ms": 6000,
                "create_response": True,
                "interrupt_response": True,
            },
        },
        "output": {"format": {"type": "audio/pcmu"}, "voice": {"id": "v"}, "speed": 1.5},
    },
}
SEMANTIC = {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}}
RESPONSE = {
    "conversation": "auto",
    "instructions": "x",
    "metadata": {"client_event_id": "1"},
    "max_output_tokens": 100,
    "output_modalities": ["text"],
    "tool_choice": "none",
    "tools": [],
    "input": [],
    "audio": {"output": {"format": {"type": "audio/pcm"}, "voice": "alloy"}},
}
GOOD: list[dict[str, Any]] = [
    {"type": "session.update", "session": SESSION},
    {"type": "session.update", "session": {"type": "realtime", "audio": SEMANTIC}},
    {"type": "session.update", "session": {"type": "realtime"}},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear", "event_id": "e"},
    {"type": "output_audio_buffer.clear"},
    {"type": "conversation.item.create", "item": USER, "previous_item_id": "root"},
    {
        "type": "conversation.item.create",
        "item": {
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "hi"},
                {"type": "output_audio", "audio": "AAAA", "transcript": "hi"},
            ],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {
            "type": "message",
            "role": "system",
            "content": [{"type": "input_text", "text": "x"}],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "c", "output": "1"},
    },
    {
        "type": "conversation.item.create",
        "item": {
            "type": "mcp_approval_response",
            "id": "m",
            "approval_request_id": "r",
            "approve": True,
        },
    },
    {"type": "conversation.item.retrieve", "item_id": "i"},
    {"type": "conversation.item.delete", "item_id": "i"},
    {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 9},
    {"type": "response.create"},
    {"type": "response.create", "response": RESPONSE},
    {"type": "response.cancel"},
    {"type": "response.cancel", "response_id": "r"},
]


@pytest.mark.parametrize("event", GOOD, ids=lambda event: event["type"])
def test_what_openai_allows_is_taken(event: dict[str, Any]) -> None:
    # That the list is of OpenAI's own, not ours, its types say.
    types = pytest.importorskip("openai.types.realtime")
    from pydantic import TypeAdapter

    TypeAdapter(types.RealtimeClientEvent).validate_python(event)
    checked = check(read_json(json.dumps(event)))
    assert checked.model_dump(exclude_unset=True) == event


def test_every_event_of_openai_is_known() -> None:
    types = pytest.importorskip("openai.types.realtime")
    (union, *_) = types.RealtimeClientEvent.__args__
    names = {member.model_fields["type"].annotation.__args__[0] for member in union.__args__}
    assert set(EVENTS) == names
    assert {event["type"] for event in GOOD} == names


TURNS = {"type": "server_vad"}
BAD = [
    ("{", "invalid_json", None),
    ("[]", "invalid_json", None),
    ("NaN", "invalid_json", None),
    ("[" * 10_000, "invalid_json", None),
    ('"\\ud800"', "invalid_json", None),
    ({}, "missing_required_parameter", "type"),
    ({"type": 3}, "invalid_value", "type"),
    ({"type": "unmute.now"}, "invalid_value", "type"),
    ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
    ({"type": "input_audio_buffer.append", "audio": 3}, "invalid_type", "audio"),
    ({"type": "input_audio_buffer.commit", "sound": "AAAA"}, "unknown_parameter", "sound"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    ({"type": "session.update", "session": []}, "invalid_type", "session"),
    (
        {"type": "session.update", "session": {"modalities": ["audio"]}},
        "unknown_parameter",
        "session.modalities",
    ),
    (
        {"type": "session.update", "session": {"type": "transcription"}},
        "invalid_value",
        "session.type",
    ),
    (
        {
            "type": "session.update",
            "session": {"audio": {"input": {"turn_detection": {**TURNS, "threshold": "0.5"}}}},
        },
        "invalid_type",
        "session.audio.input.turn_detection.threshold",
    ),
    (
        {
            "type": "session.update",
            "session": {"audio": {"input": {"turn_detection": {**TURNS, "threshold": 2}}}},
        },
        "invalid_value",
        "session.audio.input.turn_detection.threshold",
    ),
    (
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user"}},
        "missing_required_parameter",
        "item.content",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": [{"type": "sound"}]},
        },
        "invalid_value",
        "item.content.0.type",
    ),
    (
        {"type": "conversation.item.create", "item": {"type": "picture"}},
        "invalid_value",
        "item",
    ),
    (
        {
            "type": "conversation.item.truncate",
            "item_id": "i",
            "content_index": 0,
            "audio_end_ms": -1,
        },
        "invalid_value",
        "audio_end_ms",
    ),
    ({"type": "response.cancel", "response_id": 1}, "invalid_type", "response_id"),
]


@pytest.mark.parametrize(("event", "code", "param"), BAD)
def test_what_is_wrong_is_named(event: Any, code: str, param: str | None) -> None:
    text = event if isinstance(event, str) else json.dumps({**event, "event_id": "mine"})
    with pytest.raises(ProtocolError) as caught:
        check(read_json(text))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.event_id == (None if isinstance(event, str) else "mine")
    assert "\n" not in str(caught.value)


def test_more_sound_than_one_event_may_carry_is_refused() -> None:
    audio = "A" * (MAX_AUDIO_CHARACTERS + 4)
    with pytest.raises(ProtocolError, match=r"audio: .*15728640"):
        check({"type": "input_audio_buffer.append", "audio": audio})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "item", "session", "audio", "input", "content", "role", "x"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from(sorted(EVENTS)), st.dictionaries(st.text(max_size=9), JSON_VALUES), st.data()
)
def test_whatever_comes_is_an_event_or_a_protocol_error(
    kind: str, event: dict[str, Any], data: st.DataObject
) -> None:
    fields = list(EVENTS[kind].model_fields)
    event = {**event, data.draw(st.sampled_from(fields)): data.draw(JSON_VALUES), "type": kind}
    with suppress(ProtocolError):
        assert isinstance(check(read_json(json.dumps(event))), EVENTS[kind])


def test_what_pipecat_sends_is_taken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipecat = pytest.importorskip("pipecat.services.openai.realtime.events")
    session = pipecat.SessionProperties(
        instructions="be kind",
        output_modalities=["audio"],
        audio=pipecat.AudioConfiguration(
            input=pipecat.AudioInput(
                format=pipecat.PCMAudioFormat(),
                transcription=pipecat.InputAudioTranscription(),
                turn_detection=pipecat.SemanticTurnDetection(eagerness="low"),
            ),
            output=pipecat.AudioOutput(format=pipecat.PCMUAudioFormat(), voice="alloy", speed=1.0),
        ),
    )
    item = pipecat.ConversationItem(
        type="message",
        role="user",
        content=[pipecat.ItemContent(type="input_text", text="hello")],
    )
    events = [
        pipecat.SessionUpdateEvent(session=session),
        pipecat.InputAudioBufferAppendEvent(audio="AAAA"),
        pipecat.InputAudioBufferCommitEvent(),
        pipecat.InputAudioBufferClearEvent(),
        pipecat.ConversationItemCreateEvent(item=item),
        pipecat.ConversationItemTruncateEvent(item_id="i", content_index=0, audio_end_ms=1),
        pipecat.ConversationItemDeleteEvent(item_id="i"),
        pipecat.ConversationItemRetrieveEvent(item_id="i"),
        pipecat.ResponseCreateEvent(response=pipecat.ResponseProperties()),
        pipecat.ResponseCancelEvent(),
    ]
    for event in events:
        sent = event.model_dump(exclude_none=True)
        assert check(read_json(json.dumps(sent))).event_id == sent["event_id"]
