"""The protocol's beta names, for clients that ask for them: a table, both ways.

Source:
    OpenAI Realtime API before its general availability (2024-10 to 2025-08).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechlm.dialogue.server.realtime.client_events import JSON

FLAT: Mapping[str, tuple[str, ...]] = {
    "modalities": ("output_modalities",),
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "input_audio_format": ("audio", "input", "format"),
    "output_audio_format": ("audio", "output", "format"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "max_response_output_tokens": ("max_output_tokens",),
}
"""Flat fields of beta sessions and responses, and where GA keeps them."""

FORMATS: Mapping[str, JSON] = {
    "pcm16": {"type": "audio/pcm", "rate": 24_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}

NAMES: Mapping[str, str] = {
    "conversation.item.added": "conversation.item.created",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
}
"""Server events that beta calls otherwise."""

PARTS: Mapping[str, str] = {"output_audio": "audio", "output_text": "text"}


def from_beta(event: JSON) -> JSON:
    """A beta client's event in GA names; what is no field of beta is left as it is."""
    for field in ("session", "response"):
        if isinstance(event.get(field), dict):
            event = {**event, field: _nested(event[field])}
    return event


def param_in_beta(param: str) -> str:
    """The beta path of a GA one, for errors."""
    head, _, rest = param.partition(".")
    for flat, path in FLAT.items():
        inside = ".".join(path)
        if rest == inside or rest.startswith(inside + "."):
            return head + "." + flat + rest.removeprefix(inside)
    return param


def to_beta(event: JSON) -> JSON | None:
    """A GA server event in beta names; None for those that beta does not have."""
    if event["type"] == "conversation.item.done":
        return None
    event = {**event, "type": NAMES.get(event["type"], event["type"])}
    if "session" in event:
        event["session"] = _flat(event["session"])
    if "response" in event:
        event["response"] = _flat(event["response"])
        event["response"]["output"] = [_item(one) for one in event["response"]["output"]]
    if "item" in event:
        event["item"] = _item(event["item"])
    return event


def _nested(flat: JSON) -> JSON:
    nested = {key: value for key, value in flat.items() if key not in FLAT}
    for key, path in FLAT.items():
        if key not in flat:
            continue
        value = flat[key]
        if key.endswith("_format"):
            value = FORMATS.get(value, value) if isinstance(value, str) else value
        if key == "modalities" and isinstance(value, list) and "audio" in value:
            # Sound comes with its text in both dialects; beta says so, GA does not.
            value = ["audio"]
        place = nested
        for part in path[:-1]:
            below = place.get(part)
            place[part] = dict(below) if isinstance(below, dict) else {}
            place = place[part]
        place[path[-1]] = value
    return nested


def _flat(nested: JSON) -> JSON:
    flat = {
        key: value
        for key, value in nested.items()
        if key not in ("audio", "output_modalities", "max_output_tokens", "type")
    }
    for key, path in FLAT.items():
        value: Any = nested
        for part in path:
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            if key.endswith("_format"):
                value = next(name for name, one in FORMATS.items() if one["type"] == value["type"])
            if key == "modalities" and value == ["audio"]:
                value = ["text", "audio"]
            flat[key] = value
    return flat


def _item(item: JSON) -> JSON:
    if "content" not in item:
        return item
    content = [{**one, "type": PARTS.get(one["type"], one["type"])} for one in item["content"]]
    return {**item, "content": content}
