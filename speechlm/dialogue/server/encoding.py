"""Sound as bytes that can be sent while it is still being made."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import soundfile

from speechlm.dialogue.messages import Samples

SAMPLE_RATE = 24_000
"""Of all speech that is given over HTTP, Hz: what OpenAI's is at."""


class Encoder(Protocol):
    """One recording being encoded."""

    def push(self, samples: Samples) -> bytes:
        """What is certain after these samples, perhaps nothing."""
        ...

    def finish(self) -> bytes:
        """The rest."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One way to write sound."""

    media_type: str
    encoder: Callable[[], Encoder]


class Pcm:
    """Little-endian 16-bit samples, nothing else."""

    def push(self, samples: Samples) -> bytes:
        return pcm16(samples)

    def finish(self) -> bytes:
        return b""


class Wav:
    """Samples behind a header that says "as long as it goes": its length isn't known yet."""

    def __init__(self) -> None:
        endless, frame_bytes = 0xFFFFFFFF, 2
        self._header = struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            *(b"RIFF", endless, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE),
            *(SAMPLE_RATE * frame_bytes, frame_bytes, 8 * frame_bytes, b"data", endless),
        )

    def push(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + pcm16(samples)

    def finish(self) -> bytes:
        return self._header


class Compressed:
    """What libsndfile makes, as far as it has come."""

    def __init__(self, container: str, subtype: str, **how: Any) -> None:
        """Write a container that is whole at any time: one that goes back to its beginning at
        the end is for :class:`Whole`."""
        self._file = io.BytesIO()
        self._writer = soundfile.SoundFile(
            self._file, "w", SAMPLE_RATE, 1, subtype=subtype, format=container, **how
        )
        self._given = 0

    def push(self, samples: Samples) -> bytes:
        self._writer.write(np.clip(samples, -1.0, 1.0))
        return self._take()

    def finish(self) -> bytes:
        self._writer.close()
        return self._take()

    def _take(self) -> bytes:
        with self._file.getbuffer() as held:
            made = bytes(held[self._given :])
        self._given += len(made)
        return made


class Whole(Compressed):
    """All at the end, with a true length at the beginning."""

    def push(self, samples: Samples) -> bytes:
        self._writer.write(np.clip(samples, -1.0, 1.0))
        return b""


FORMATS: Mapping[str, Format] = {
    # At a constant rate: readers guess an MP3's length from its first frames.
    "mp3": Format(
        media_type="audio/mpeg",
        encoder=lambda: Compressed(
            "MP3", "MPEG_LAYER_III", compression_level=0.5, bitrate_mode="CONSTANT"
        ),
    ),
    "opus": Format(media_type="audio/ogg", encoder=lambda: Compressed("OGG", "OPUS")),
    "flac": Format(media_type="audio/flac", encoder=lambda: Whole("FLAC", "PCM_16")),
    "wav": Format(media_type="audio/wav", encoder=Wav),
    "pcm": Format(media_type="audio/pcm", encoder=Pcm),
}
"""By OpenAI's names. PCM, WAV and MP3 come at once, Opus by pages of a second, FLAC at the end."""


def pcm16(samples: Samples) -> bytes:
    """Float32 [n] in -1..1 as little-endian 16-bit samples."""
    return (np.clip(samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
