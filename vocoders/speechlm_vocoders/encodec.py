"""``encodec``: EnCodec's decoder, streamed with state where the model is causal.

It renders what the tokenizer ``encodec`` gives, in the same blocks or segments, and needs nothing
but codes. In a model that normalises loudness the last codebook says it: a segment is as loud as
the median of its frames says, so a language model's slip in a frame changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.streaming import State
from speechlm.units import Units
from speechlm_tokenizers.codec_loading import aligned, below, empty, fill
from speechlm_tokenizers.encodec import Encodec, EncodecConfig
from speechlm_tokenizers.encodec_model import Decoder, ResidualQuantizer, scale_of
from speechlm_tokenizers.windows import Windows
from speechlm_vocoders.codec_decoding import DecodingStream, decode_each, refuse_voice

KIND = "encodec"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodecDecoderConfig:
    """What an ``encodec`` decoder was built for."""

    tokenizer_fingerprint: str
    tokenizer: EncodecConfig


class EncodecDecoder:
    """Renders units of ``encodec``, in the voice that they keep; streams with state."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: EncodecDecoderConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        shape = config.tokenizer.architecture
        self.sample_rate = shape.sample_rate
        self.hop_length = shape.hop_length
        self.num_codebooks = config.tokenizer.num_codebooks + shape.normalize
        self.vocab_size = shape.codebook_size
        self.lookahead = config.tokenizer.first_frames - 1
        self._decoder = fill(empty(partial(Decoder, shape)), below(self._tensors, "decoder."), KIND)
        self._quantizer = ResidualQuantizer(self._tensors["codebooks"])

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one from the decoder's weights, which the tokenizer keeps."""
        if not isinstance(tokenizer, Encodec):
            raise PluginError(
                f"vocoder {KIND!r} renders units of 'encodec', got {tokenizer.fingerprint!r}; "
                "choose another vocoder: 'speechlm list' shows them"
            )
        config = EncodecDecoderConfig(
            tokenizer_fingerprint=tokenizer.fingerprint, tokenizer=tokenizer.config
        )
        tensors = {
            name: tensor
            for name, tensor in tokenizer.tensors.items()
            if name.startswith("decoder.") or name == "codebooks"
        }
        return cls(config, tensors)

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        ``speaker`` and ``style`` must be None: the units hold the voice.
        """
        return decode_each(self, units, speaker, style)

    def stream(self, speaker: Speaker | None = None, style: str | None = None) -> DecodingStream:
        refuse_voice(KIND, speaker, style)
        state: State = {}
        config = self.config.tokenizer
        return DecodingStream(
            Windows(config.block_frames, first=config.first_frames),
            lambda block: self._decode_block(block.content, state),
            self.num_codebooks,
            self.vocab_size,
        )

    @torch.no_grad()
    def _decode_block(self, codes: Tensor, state: State) -> Tensor:
        """Render a stream's next block, or a segment: int64 [K, m] to float32 [m * hop_length]."""
        shape = self.config.tokenizer.architecture
        features = self._quantizer.decode(codes[: self.config.tokenizer.num_codebooks])
        channels: Tensor = self._decoder(features, state if shape.causal else None)[0]
        wave = channels.mean(dim=0)
        if shape.normalize:
            wave = wave * scale_of(codes[-1].median(), shape.codebook_size)
        return wave

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(EncodecDecoderConfig, part.config), part.tensors)
