"""``mimi``: Mimi's own decoder, streamed frame by frame with its state.

It is made of what the tokenizer of the same name keeps, and needs no training. A stream computes
the tokenizer's blocks, and a whole utterance is such a stream: the same samples to the last bit,
whatever the cut or the batch.

Source:
    Défossez et al. 2024 (Moshi), arXiv:2410.00037; weights: https://huggingface.co/kyutai/mimi.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.settings import build
from speechlm.streaming import Blocks
from speechlm.units import Units
from speechlm_tokenizers.mimi import Mimi
from speechlm_tokenizers.mimi_model import Decoder, MimiArchitecture, State

KIND = "mimi"


@dataclass(frozen=True, kw_only=True, slots=True)
class MimiDecoderConfig:
    """What a saved decoder is, beside its weights."""

    tokenizer_fingerprint: str
    architecture: MimiArchitecture = field(default_factory=MimiArchitecture)
    block: int = 1
    """Frames computed at once."""


class MimiDecoder:
    """Renders units of ``mimi`` at 24 kHz, in the voice that they keep."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: MimiDecoderConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._tensors = dict(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        self.num_codebooks, self.vocab_size, _ = self._tensors["quantizer.codebooks"].shape
        self.sample_rate = config.architecture.sample_rate
        self.hop_length = config.architecture.hop_length
        self.lookahead = config.block - 1
        self._decoder = Decoder(self._tensors, config.architecture, config.block)

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one from the decoder that the tokenizer keeps."""
        if not isinstance(tokenizer, Mimi):
            raise PluginError(
                f"vocoder {KIND!r} renders units of 'mimi', got {tokenizer.fingerprint!r}; "
                "choose another vocoder: 'speechlm list' shows them"
            )
        config = MimiDecoderConfig(
            tokenizer_fingerprint=tokenizer.fingerprint,
            architecture=tokenizer.config.architecture,
            block=tokenizer.config.block,
        )
        mine = ("decoder.", "quantizer.codebooks")
        return cls(config, {n: t for n, t in tokenizer.tensors.items() if n.startswith(mine)})

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        ``speaker`` and ``style`` must be None: the units keep the voice.
        """
        for item in units:
            if item.fingerprint != self.tokenizer_fingerprint:
                raise FingerprintError(
                    part="this vocoder",
                    expected=self.tokenizer_fingerprint,
                    got=item.fingerprint,
                    remedy="tokenize with the tokenizer of the same bundle",
                )
        waves = []
        for item in units:
            stream = self.stream(speaker, style)
            waves.append(torch.cat([stream.push(item.expand().codes), stream.finish()]))
        return waves

    def stream(self, speaker: Speaker | None = None, style: str | None = None) -> MimiDecoderStream:
        if speaker is not None or style is not None:
            raise InputError(
                f"vocoder {KIND!r} renders the voice that the units keep; expected no speaker and "
                "no style"
            )
        return MimiDecoderStream(self, self._decoder)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(MimiDecoderConfig, part.config), part.tensors)


class MimiDecoderStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(self, vocoder: MimiDecoder, decoder: Decoder) -> None:
        self._vocoder, self._decoder = vocoder, decoder
        self._blocks = Blocks(vocoder.config.block)
        self._state = State()

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m]; give the samples now certain, float32 [n]."""
        expected, size = self._vocoder.num_codebooks, self._vocoder.vocab_size
        if codes.ndim != 2 or len(codes) != expected:
            raise InputError(
                f"expected units [{expected}, m] of {expected} codebooks, got {list(codes.shape)}"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise InputError(
                f"expected units within 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}"
            )
        blocks = self._blocks.push(codes)
        waves = [self._decoder.decode(block, self._state) for block in blocks]
        return torch.cat([torch.zeros(0), *waves])

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n]."""
        last = self._blocks.finish()
        if last is None:
            return torch.zeros(0)
        block, frames = last
        return self._decoder.decode(block, self._state)[: frames * self._vocoder.hop_length]
