"""What a tokenizer and a vocoder are. Plug-ins satisfy these; nothing subclasses them.

``streaming`` says how a part's stream relates to the whole:

``"exact"``
    However a recording is cut, the concatenated output of ``push`` and ``finish`` equals the
    output for the whole, element for element.
``"windowed"``
    The stream sees a bounded lookahead; its agreement with the whole is measured and printed.

State that lasts between calls lives in the stream object, never in the part, so that any
number of streams of one part can be open at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

from torch import Tensor

from speechlm.units import Units

Streaming = Literal["exact", "windowed"]


class TokenizerStream(Protocol):
    """One live recording being tokenized; not reusable after :meth:`finish`."""

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] samples, n >= 0; give every unit now certain, int64 [K, m]."""
        ...

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [K, m], and close the stream."""
        ...


class AudioTokenizer(Protocol):
    """Waveform to discrete units.

    1. *Batch invariance*: a recording's units are the same alone and in any batch.
    2. *Chunk invariance*: see ``streaming`` in this module's docstring.
    3. *Count*: a recording of T samples gives ``ceil(T / hop_length)`` frames.
    """

    @property
    def sample_rate(self) -> int:
        """Rate of the waveform it takes, Hz."""
        ...

    @property
    def hop_length(self) -> int:
        """Samples a frame of units."""
        ...

    @property
    def frame_rate(self) -> float:
        """``sample_rate / hop_length``, Hz."""
        ...

    @property
    def num_codebooks(self) -> int: ...

    @property
    def vocab_size(self) -> int:
        """Units a codebook."""
        ...

    @property
    def lookahead(self) -> int:
        """Samples beyond a frame's end that the stream needs before it gives the frame."""
        ...

    @property
    def streaming(self) -> Streaming: ...

    @property
    def fingerprint(self) -> str:
        """Name and hash of configuration and weights."""
        ...

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch.

        Args:
            wave: float32 [B, T] at ``sample_rate``.
            lengths: Real samples of each row, int64 [B]; all T when not given.

        Returns:
            The units of each row, ``codes`` int64 [K, ceil(length / hop_length)].
        """
        ...

    def stream(self) -> TokenizerStream: ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...


class VocoderStream(Protocol):
    """One live utterance being rendered; not reusable after :meth:`finish`."""

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m], m >= 0; give every sample now certain, float32 [n]."""
        ...

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], and close the stream."""
        ...


class Vocoder(Protocol):
    """Discrete units to waveform: the mirror image of :class:`AudioTokenizer`."""

    @property
    def sample_rate(self) -> int:
        """Rate of the waveform it gives, Hz."""
        ...

    @property
    def hop_length(self) -> int:
        """Samples a frame of units."""
        ...

    @property
    def lookahead(self) -> int:
        """Frames beyond the present one that the stream needs."""
        ...

    @property
    def streaming(self) -> Streaming: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer_fingerprint(self) -> str:
        """The tokenizer whose units it renders; others are refused."""
        ...

    def decode(
        self, units: Sequence[Units], speaker: str | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch, each float32 [F * hop_length].

        Raises:
            FingerprintError: The units came from another tokenizer.
        """
        ...

    def stream(self) -> VocoderStream: ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one that needs no training of its own.

        Raises:
            PluginError: This vocoder must be trained, or cannot render that tokenizer.
        """
        ...
