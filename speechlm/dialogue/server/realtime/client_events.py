"""What a client may say: the eleven events of the protocol, checked field by field.

Source:
    OpenAI Realtime API, client events; the shapes of ``openai.types.realtime``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from speechlm.errors import InputError

MAX_AUDIO_CHARACTERS = 15 * 2**20
"""Of one ``input_audio_buffer.append``, in base64."""

Dialect = Literal["ga", "beta"]
JSON = dict[str, Any]


class ProtocolError(InputError):
    """An event that cannot be used; the session goes on."""

    def __init__(
        self, message: str, *, code: str, param: str | None = None, event_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        """Which field, as a path with points."""
        self.event_id = event_id
        """Of the client's event, where it gave one."""


class Strict(BaseModel):
    """Says no to fields that it does not know and to values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def given(self) -> JSON:
        """The fields that were sent, those that were sent as null too."""
        return self.model_dump(exclude_unset=True)


# --- the session --------------------------------------------------------------------------------


class Format(Strict):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: int | None = None


class Transcription(Strict):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    languages: list[str] | None = None
    keywords: list[str] | None = None
    delay: str | None = None


class NoiseReduction(Strict):
    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = None


class TurnDetection(Strict):
    type: Literal["server_vad", "semantic_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    prefix_padding_ms: Annotated[int, Field(ge=0, le=60_000)] | None = None
    silence_duration_ms: Annotated[int, Field(ge=0, le=60_000)] | None = None
    idle_timeout_ms: int | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class AudioInput(Strict):
    format: Format | None = None
    transcription: Transcription | None = None
    noise_reduction: NoiseReduction | None = None
    turn_detection: TurnDetection | None = None


class VoiceId(Strict):
    id: str


class AudioOutput(Strict):
    format: Format | None = None
    voice: str | VoiceId | None = None
    speed: Annotated[float, Field(ge=0.25, le=1.5)] | None = None


class Audio(Strict):
    input: AudioInput | None = None
    output: AudioOutput | None = None


class Choices(Strict):
    """What a session and a single response have in common."""

    audio: Audio | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    output_modalities: list[Literal["text", "audio"]] | None = None
    parallel_tool_calls: bool | None = None
    prompt: JSON | None = None
    reasoning: JSON | None = None
    temperature: float | None = None
    tool_choice: str | JSON | None = None
    tools: list[JSON] | None = None


class SessionChoices(Choices):
    type: Literal["realtime"] | None = None
    # A client may send back what it was shown; these are not its to choose.
    id: str | None = None
    object: str | None = None
    model: str | None = None
    expires_at: int | None = None
    include: list[str] | None = None
    tracing: str | JSON | None = None
    truncation: str | JSON | None = None
    x_ext: bool | None = None
    """Our own: lets the server send events that are not OpenAI's."""


class ResponseChoices(Choices):
    conversation: str | None = None
    input: list[JSON] | None = None
    metadata: dict[str, str] | None = None


# --- items --------------------------------------------------------------------------------------


class Part(Strict):
    type: Literal[
        "input_text",
        "input_audio",
        "input_image",
        "output_text",
        "output_audio",
        "text",
        "audio",
    ]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None
    image_url: str | None = None
    detail: str | None = None


class Item(Strict):
    id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class Message(Item):
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[Part]


class FunctionCall(Item):
    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str | None = None


class FunctionCallOutput(Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str


class ToolItem(Item):
    """Of tools on other machines, which no SpeechLM calls: kept as it came."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools"]


# --- events -------------------------------------------------------------------------------------


class ClientEvent(Strict):
    event_id: str | None = None


class UpdateSession(ClientEvent):
    type: Literal["session.update"]
    session: SessionChoices


class AppendAudio(ClientEvent):
    type: Literal["input_audio_buffer.append"]
    audio: Annotated[str, Field(max_length=MAX_AUDIO_CHARACTERS)]


class CommitAudio(ClientEvent):
    type: Literal["input_audio_buffer.commit"]


class ClearAudio(ClientEvent):
    type: Literal["input_audio_buffer.clear"]


class CreateItem(ClientEvent):
    type: Literal["conversation.item.create"]
    item: Annotated[
        Message | FunctionCall | FunctionCallOutput | ToolItem, Field(discriminator="type")
    ]
    previous_item_id: str | None = None


class RetrieveItem(ClientEvent):
    type: Literal["conversation.item.retrieve"]
    item_id: str


class RemoveItem(ClientEvent):
    type: Literal["conversation.item.delete"]
    item_id: str


class TruncateItem(ClientEvent):
    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: Annotated[int, Field(ge=0)]
    audio_end_ms: Annotated[int, Field(ge=0)]


class CreateResponse(ClientEvent):
    type: Literal["response.create"]
    response: ResponseChoices | None = None


class CancelResponse(ClientEvent):
    type: Literal["response.cancel"]
    response_id: str | None = None


class ClearOutput(ClientEvent):
    type: Literal["output_audio_buffer.clear"]


EVENTS: Mapping[str, type[ClientEvent]] = {
    "session.update": UpdateSession,
    "input_audio_buffer.append": AppendAudio,
    "input_audio_buffer.commit": CommitAudio,
    "input_audio_buffer.clear": ClearAudio,
    "conversation.item.create": CreateItem,
    "conversation.item.retrieve": RetrieveItem,
    "conversation.item.delete": RemoveItem,
    "conversation.item.truncate": TruncateItem,
    "response.create": CreateResponse,
    "response.cancel": CancelResponse,
    "output_audio_buffer.clear": ClearOutput,
}


def read_json(text: str) -> JSON:
    """One message as an object that names a known event.

    Raises:
        ProtocolError: It is no JSON object, or of no known type.
    """
    try:
        data = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ProtocolError(f"expected JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise ProtocolError(
            f"expected a JSON object, got {type(data).__name__}", code="invalid_json"
        )
    event_id = data.get("event_id")
    event_id = event_id if isinstance(event_id, str) else None
    if "type" not in data:
        raise ProtocolError(
            "expected an event with a 'type', got none",
            code="missing_required_parameter",
            param="type",
            event_id=event_id,
        )
    if not isinstance(data["type"], str) or data["type"] not in EVENTS:
        shown = str(data["type"])[:100]
        raise ProtocolError(
            f"unknown event type {shown!r}; known: {', '.join(EVENTS)}",
            code="invalid_value",
            param="type",
            event_id=event_id,
        )
    return data


def check(data: JSON) -> ClientEvent:
    """An event of :func:`read_json`, in GA names, with all its fields checked.

    Raises:
        ProtocolError: Names the first field that is wrong.
    """
    try:
        return EVENTS[data["type"]].model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = _path(first["loc"], data)
        code = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
        kind = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
        event_id = data.get("event_id")
        raise ProtocolError(
            f"{param}: {first['msg']}",
            code=code.get(first["type"], kind),
            param=param,
            event_id=event_id if isinstance(event_id, str) else None,
        ) from error


def _path(location: tuple[int | str, ...], data: Any) -> str:
    """Where a field is, without the names of alternatives that pydantic puts between."""
    path: list[str] = []
    for place, part in enumerate(location):
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int)
        )
        if inside:
            path.append(str(part))
            data = data[part]
        elif place == len(location) - 1 and isinstance(data, dict):
            path.append(str(part))
    return ".".join(path)
