"""What the decoders of all codecs check and do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from speechlm.errors import FingerprintError, InputError
from speechlm.protocols import Speaker, Vocoder
from speechlm.units import Units
from speechlm_tokenizers.windows import Window, WindowedStream, Windows


def decode_each(
    vocoder: Vocoder, units: Sequence[Units], speaker: Speaker | None, style: str | None
) -> list[Tensor]:
    """Render each item alone, by a stream to which all of it is pushed at once.

    Raises:
        FingerprintError: Units came from another tokenizer.
    """
    for item in units:
        if item.fingerprint != vocoder.tokenizer_fingerprint:
            raise FingerprintError(
                part="this vocoder",
                expected=vocoder.tokenizer_fingerprint,
                got=item.fingerprint,
                remedy="tokenize with the tokenizer of the same bundle",
            )
    waves = []
    for item in units:
        stream = vocoder.stream(speaker, style)
        waves.append(torch.cat([stream.push(item.expand().codes), stream.finish()]))
    return waves


def refuse_voice(kind: str, speaker: Speaker | None, style: str | None) -> None:
    """Refuse a speaker or style: a codec's units hold the voice."""
    if speaker is not None or style is not None:
        raise InputError(
            f"vocoder {kind!r} gives the voice that its units hold; expected no speaker, no style"
        )


def check_codes(codes: Tensor, num_codebooks: int, vocab_size: int) -> None:
    """Refuse units that are not int64 [num_codebooks, m] within 0..vocab_size-1."""
    if codes.ndim != 2 or codes.shape[0] != num_codebooks or codes.dtype != torch.int64:
        raise InputError(
            f"expected units int64 [{num_codebooks}, m], one row a codebook, "
            f"got {codes.dtype} {list(codes.shape)}"
        )
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < vocab_size:
        raise InputError(
            f"expected units within 0..{vocab_size - 1}, got {int(codes.min())}..{int(codes.max())}"
        )


class DecodingStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(
        self,
        windows: Windows,
        compute: Callable[[Window], Tensor],
        num_codebooks: int,
        vocab_size: int,
    ) -> None:
        """Begin.

        Args:
            windows: Cuts the codes.
            compute: Renders what a window stands for, float32 [keep * hop_length].
            num_codebooks: Rows that codes must have.
            vocab_size: What they must be below.
        """
        self._stream = WindowedStream(windows, compute, torch.zeros(0))
        self._num_codebooks, self._vocab_size = num_codebooks, vocab_size

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m]; give the samples now certain, float32 [n]."""
        check_codes(codes, self._num_codebooks, self._vocab_size)
        return self._stream.push(codes)

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], so that all units have theirs."""
        return self._stream.finish()
