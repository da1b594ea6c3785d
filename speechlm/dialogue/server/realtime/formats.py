"""Sound as bytes on the wire: 16-bit PCM, and G.711 by table.

Source:
    ITU-T G.711 (1988), mu-law and A-law; the encoders take 14 and 12 of 16 bits, as libsndfile's.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from speechlm.dialogue.messages import Samples
from speechlm.dialogue.settings import RATES
from speechlm.errors import InputError

FormatName = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
G711_RATE = 8_000
"""Of telephones, Hz."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioFormat:
    """How one side's sound travels.

    Raises:
        InputError: A rate that sessions do not have, or G.711 at another than 8 kHz.
    """

    name: FormatName = "audio/pcm"
    rate: int = 24_000
    """Hz."""

    def __post_init__(self) -> None:
        rates = RATES if self.name == "audio/pcm" else (G711_RATE,)
        if self.rate not in rates:
            raise InputError(
                f"expected {self.name} at {', '.join(map(str, rates))} Hz, got {self.rate}"
            )

    @property
    def bytes_per_sample(self) -> int:
        return 2 if self.name == "audio/pcm" else 1

    def decode(self, text: str) -> Samples:
        """Base64 to sound, float32 [n].

        Raises:
            InputError: Not base64, or half a sample at its end.
        """
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"expected base64, got something else: {error}") from error
        if len(raw) % self.bytes_per_sample:
            raise InputError(f"expected whole samples of 2 bytes, got {len(raw)} bytes")
        if self.name == "audio/pcm":
            linear: npt.NDArray[np.int16] = np.frombuffer(raw, "<i2")
        else:
            linear = _levels(self.name)[np.frombuffer(raw, np.uint8)]
        return linear.astype(np.float32) / np.float32(32768)

    def encode(self, samples: Samples) -> str:
        """Sound float32 [n], cut off at -1..1, to base64."""
        linear = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
        if self.name == "audio/pcm":
            return base64.b64encode(linear.astype("<i2").tobytes()).decode()
        return base64.b64encode(_codes(self.name)[linear.view(np.uint16)].tobytes()).decode()

    def shown(self) -> dict[str, Any]:
        """As the protocol writes it."""
        if self.name == "audio/pcm":
            return {"type": self.name, "rate": self.rate}
        return {"type": self.name}


def format_from(shown: dict[str, Any]) -> AudioFormat:
    """The format that ``{"type": ..., "rate": ...}`` names.

    Raises:
        InputError: As :class:`AudioFormat`.
    """
    name: FormatName = shown["type"]
    default = 24_000 if name == "audio/pcm" else G711_RATE
    return AudioFormat(name=name, rate=shown.get("rate") or default)


@cache
def _levels(name: FormatName) -> npt.NDArray[np.int16]:
    """The linear value of each code, int16 [256]."""
    codes = np.arange(256)
    if name == "audio/pcmu":
        codes = ~codes & 0xFF
        exponent, mantissa = (codes >> 4) & 7, codes & 15
        size = (((mantissa << 3) + 0x84) << exponent) - 0x84
        return np.where(codes & 0x80, -size, size).astype(np.int16)
    codes = codes ^ 0x55
    exponent, mantissa = (codes >> 4) & 7, codes & 15
    low = (mantissa << 4) + 8
    size = np.where(exponent == 0, low, (low + 0x100) << np.maximum(exponent - 1, 0))
    return np.where(codes & 0x80, size, -size).astype(np.int16)


@cache
def _codes(name: FormatName) -> npt.NDArray[np.uint8]:
    """The code of each linear value, uint8 [65536], by the value as uint16."""
    linear = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.int32)
    size = np.abs(linear)
    if name == "audio/pcmu":
        size = np.minimum(size >> 2, 8158) + 33
        exponent = np.floor(np.log2(size)).astype(np.int32) - 5
        codes = 0x80 | ~((exponent << 4) | ((size >> (exponent + 1)) & 15)) & 0x7F
        signed = np.where(linear < 0, codes & 0x7F, codes)
        return np.asarray(signed, np.uint8)
    size = np.minimum(size >> 4, 2047)
    exponent = np.maximum(np.floor(np.log2(np.maximum(size, 1))).astype(np.int32) - 3, 0)
    codes = (exponent << 4) | ((size >> np.maximum(exponent - 1, 0)) & 15)
    signed = np.where(linear < 0, codes, codes | 0x80)
    return np.asarray(signed ^ 0x55, np.uint8)
