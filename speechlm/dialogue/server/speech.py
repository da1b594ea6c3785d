"""OpenAI's ``/v1/audio``: text or units read aloud, recordings written down."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import numpy as np
import soundfile
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from speechlm.dialogue.messages import Samples
from speechlm.dialogue.server.encoding import FORMATS, SAMPLE_RATE, Encoder
from speechlm.dialogue.server.limits import LimitedService
from speechlm.dialogue.server.refusal import Refusal
from speechlm.dialogue.server.uploads import read_form, read_json
from speechlm.dialogue.service import Busy, SpeechRequest
from speechlm.errors import InputError

MAX_CHARACTERS = 4096
MAX_RECORDING_S = 600.0
"""A short file may hold hours of silence."""
OPENAI_VOICES = frozenset(
    (
        *("default", "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova"),
        *("onyx", "sage", "shimmer", "verse"),
    )
)
"""Names that clients send because they must: the bundle's own voice answers to all of them."""
MAX_UNIT = 2**31
TEXT_FORMATS = ("json", "text", "verbose_json")


async def speak(request: Request, service: LimitedService, max_bytes: int) -> Response:
    """``POST /v1/audio/speech``."""
    body = await read_json(request, max_bytes)
    wanted = _speech_request(body, speaks_text=service.info.speaks_text)
    name = body.get("response_format", "mp3")
    if not isinstance(name, str) or name not in FORMATS:
        raise _invalid("response_format", f"expected one of {', '.join(FORMATS)}, got {name!r}")
    kind = body.get("stream_format", "audio")
    if kind not in ("audio", "sse"):
        raise _invalid("stream_format", f"expected audio or sse, got {kind!r}")
    sound = service.speak(wanted)
    try:
        # Only what comes before the first byte can still be refused.
        first = await anext(sound, None)
    except Busy as busy:
        raise busy_refusal(busy) from None
    except InputError as error:
        raise _invalid("input", str(error)) from None
    if first is None:
        raise Refusal(500, "no_sound", "the model ended without a sound")
    encoder = FORMATS[name].encoder()
    if kind == "sse":
        return StreamingResponse(_events(first, sound, encoder), media_type="text/event-stream")
    return StreamingResponse(_bytes(first, sound, encoder), media_type=FORMATS[name].media_type)


async def transcribe(request: Request, service: LimitedService, max_bytes: int) -> Response:
    """``POST /v1/audio/transcriptions``."""
    if not service.info.transcribes:
        raise Refusal(
            400,
            "unsupported_endpoint",
            f"the bundle {service.info.name!r} does not write down what it hears; its layout "
            "would need the text of what is heard: interleave-words, or chain",
        )
    async with read_form(request, max_bytes) as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise _invalid("file", "expected a recording as a file of the form, got none")
        wanted = form.get("response_format", "json")
        if wanted not in TEXT_FORMATS:
            raise _invalid(
                "response_format", f"expected one of {', '.join(TEXT_FORMATS)}, got {wanted!r}"
            )
        content = await upload.read()
    samples, rate = await asyncio.to_thread(_decode, content)
    try:
        text = await service.transcribe(samples, rate)
    except Busy as busy:
        raise busy_refusal(busy) from None
    except InputError as error:
        raise _invalid("file", str(error)) from None
    if wanted == "text":
        return PlainTextResponse(text + "\n")
    seconds = round(len(samples) / rate, 3)
    answer: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": seconds}}
    if wanted == "verbose_json":
        answer |= {"task": "transcribe", "duration": seconds, "language": "unknown"}
    return JSONResponse(answer)


def busy_refusal(busy: Busy) -> Refusal:
    """Why there is no place, as HTTP says it."""
    status = 429 if busy.code == "session_limit_reached" else 503
    return Refusal(status, busy.code, str(busy), retry_after_s=2)


def _speech_request(body: dict[str, Any], *, speaks_text: bool) -> SpeechRequest:
    text, units = body.get("input"), body.get("units")
    if isinstance(text, dict):
        units = text.get("units")
    if units is not None:
        return SpeechRequest(
            units=_units(units), voice=_voice(body), speed=_speed(body), sample_rate=SAMPLE_RATE
        )
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
        raise _invalid("input", f"expected a text of 1..{MAX_CHARACTERS} characters")
    if not speaks_text:
        raise Refusal(
            400,
            "unsupported_endpoint",
            "this bundle has no text to speech: its layout knows no text; give it units, as "
            '"units": [[...]], a list a codebook',
            param="input",
        )
    return SpeechRequest(text=text, voice=_voice(body), speed=_speed(body), sample_rate=SAMPLE_RATE)


def _units(given: Any) -> tuple[tuple[int, ...], ...]:
    rows = given if isinstance(given, list) else []
    listed = bool(rows) and all(
        isinstance(row, list) and all(type(unit) is int and 0 <= unit < MAX_UNIT for unit in row)
        for row in rows
    )
    if not listed:
        raise _invalid("units", "expected lists of whole numbers, one a codebook: [[5, 7, 7, 1]]")
    return tuple(tuple(row) for row in rows)


def _voice(body: dict[str, Any]) -> str | None:
    voice = body.get("voice")
    if isinstance(voice, dict):
        voice = voice.get("id")
    if voice is not None and not isinstance(voice, str):
        raise _invalid("voice", 'expected a name, or {"id": NAME}')
    return None if voice in OPENAI_VOICES else voice


def _speed(body: dict[str, Any]) -> float:
    speed = body.get("speed", 1.0)
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0.25 <= speed <= 4.0:
        raise _invalid("speed", f"expected a number within 0.25..4, got {speed!r}")
    return float(speed)


async def _bytes(
    first: Samples, sound: AsyncIterator[Samples], encoder: Encoder
) -> AsyncIterator[bytes]:
    async for made, _ in _encoded(first, sound, encoder):
        yield made


async def _events(
    first: Samples, sound: AsyncIterator[Samples], encoder: Encoder
) -> AsyncIterator[bytes]:
    """The same as server-sent events."""
    num_samples = 0
    async for made, so_far in _encoded(first, sound, encoder):
        num_samples = so_far
        yield _event("speech.audio.delta", audio=base64.b64encode(made).decode())
    seconds = round(num_samples / SAMPLE_RATE, 3)
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "output_seconds": seconds}
    yield _event("speech.audio.done", usage=usage)


async def _encoded(
    first: Samples, sound: AsyncIterator[Samples], encoder: Encoder
) -> AsyncIterator[tuple[bytes, int]]:
    """Encoded pieces that hold something, with the number of samples so far."""
    num_samples = len(first)
    # However it ends, and also when the client leaves, the place is given back.
    async with aclosing(cast(Any, sound)):
        if made := encoder.push(first):
            yield made, num_samples
        async for samples in sound:
            num_samples += len(samples)
            if made := encoder.push(samples):
                yield made, num_samples
        if made := encoder.finish():
            yield made, num_samples


def _event(kind: str, **values: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()


def _decode(content: bytes) -> tuple[Samples, int]:
    """A file's bytes as float32 [n] and its rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.frames > MAX_RECORDING_S * file.samplerate:
                raise _invalid("file", f"expected at most {MAX_RECORDING_S:g} s of sound")
            samples = file.read(dtype="float32", always_2d=True).mean(axis=1)
            return samples.astype(np.float32), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):
        raise _invalid(
            "file", "not audio that can be read; expected wav, flac, mp3, ogg or opus"
        ) from None


def _invalid(param: str, message: str) -> Refusal:
    return Refusal(400, "invalid_value", f"{param}: {message}", param=param)
