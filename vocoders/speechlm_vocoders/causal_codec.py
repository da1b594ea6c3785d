"""``causal-codec``: the decoder of the tokenizer ``causal-codec``, streamed with state.

It needs nothing but codes, and renders in the same blocks a stream and a whole. A frame is
sounded once the windows that reach over its end are known, ``lookahead`` frames later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.config import build
from speechlm.errors import PluginError
from speechlm.model.fast_linear import pack_linears
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.streaming import State
from speechlm.units import Units
from speechlm_tokenizers.causal_codec import CausalCodec
from speechlm_tokenizers.causal_codec_model import CausalCodecConfig, Quantizers
from speechlm_tokenizers.codec_loading import aligned, below, empty, fill
from speechlm_tokenizers.windows import Windows
from speechlm_vocoders.codec_decoding import check_codes, decode_each, refuse_voice
from speechlm_vocoders.vocos_model import VocosModel

KIND = "causal-codec"


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalCodecDecoderConfig:
    """What a ``causal-codec`` decoder was built for."""

    tokenizer_fingerprint: str
    tokenizer: CausalCodecConfig


class CausalCodecDecoder:
    """Renders the units of ``causal-codec``."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: CausalCodecDecoderConfig, tensors: Mapping[str, Tensor]) -> None:
        """Make one of the weights of the tokenizer's quantizers and decoder, float32."""
        self.config = config
        self._tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        shape = config.tokenizer
        self.sample_rate = shape.sample_rate
        self.hop_length = shape.hop_length
        self.num_codebooks = shape.num_codebooks
        self.vocab_size = shape.vocab_size
        self.lookahead = shape.block_frames - 1 + shape.lookahead
        self._quantizers = fill(
            empty(partial(Quantizers, shape)), below(self._tensors, "quantizers."), KIND
        )
        with torch.random.fork_rng(devices=[]):
            decoder = VocosModel(shape.decoder())
        self._decoder = fill(decoder, below(self._tensors, "decoder."), KIND)
        pack_linears(self._decoder)

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one from the decoder's weights, which the tokenizer keeps."""
        if not isinstance(tokenizer, CausalCodec):
            raise PluginError(
                f"vocoder {KIND!r} renders units of {KIND!r}, got {tokenizer.fingerprint!r}; "
                "choose another vocoder: 'speechlm list' shows them"
            )
        config = CausalCodecDecoderConfig(
            tokenizer_fingerprint=tokenizer.fingerprint, tokenizer=tokenizer.config
        )
        tensors = {
            name: tensor
            for name, tensor in tokenizer.tensors.items()
            if name.startswith(("quantizers.", "decoder."))
        }
        return cls(config, tensors)

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        ``speaker`` and ``style`` must be None: the units hold the voice.
        """
        return decode_each(self, units, speaker, style)

    def stream(
        self, speaker: Speaker | None = None, style: str | None = None
    ) -> CausalCodecDecoderStream:
        refuse_voice(KIND, speaker, style)
        return CausalCodecDecoderStream(self)

    @torch.no_grad()
    def hidden(self, codes: Tensor) -> Tensor:
        """What the decoder is given for units int64 [K, m], float32 [m, dim]."""
        vectors: Tensor = self._quantizers.decode(codes)
        return vectors

    @torch.no_grad()
    def sound(self, hidden: Tensor, noise: Tensor, state: State) -> Tensor:
        """Render a stream's next block, ``lookahead`` frames late.

        Args:
            hidden: float32 [block_frames, dim].
            noise: Normally distributed, float32 [block_frames * hop_length].
            state: The stream's.

        Returns:
            float32 [block_frames * hop_length].
        """
        waves: Tensor
        waves, _ = self._decoder(hidden[None], noise[None], state=state)
        return waves[0].clamp(-1.0, 1.0)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(CausalCodecDecoderConfig, part.config), part.tensors)


class CausalCodecDecoderStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(self, vocoder: CausalCodecDecoder) -> None:
        shape = vocoder.config.tokenizer
        self._vocoder = vocoder
        self._state: State = {}
        self._noise = torch.Generator().manual_seed(0)
        self._block = shape.block_frames
        self._windows = Windows(self._block)
        self._lookahead = shape.lookahead
        self._late = shape.lookahead * shape.hop_length
        """Samples still to come that are of the time before the utterance."""
        self._owed = 0

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m]; give the samples now certain, float32 [n]."""
        check_codes(codes, self._vocoder.num_codebooks, self._vocoder.vocab_size)
        self._owed += codes.shape[1] * self._vocoder.hop_length
        parts = [self._render(window.content) for window in self._windows.push(codes)]
        return torch.cat([torch.zeros(0), *parts])

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], so that all units have theirs."""
        last = self._windows.finish()
        parts = [] if last is None else [self._render(last.content)]
        while self._owed:
            parts.append(
                self._render(torch.zeros(self._vocoder.num_codebooks, 0, dtype=torch.int64))
            )
        return torch.cat([torch.zeros(0), *parts])

    def _render(self, codes: Tensor) -> Tensor:
        """Render a block; where units are fewer, nothing stands after them."""
        hidden = self._vocoder.hidden(codes)
        hidden = F.pad(hidden, (0, 0, 0, self._block - len(hidden)))
        noise = torch.randn(self._block * self._vocoder.hop_length, generator=self._noise)
        wave = self._vocoder.sound(hidden, noise, self._state)
        skipped = min(self._late, len(wave))
        self._late -= skipped
        wave = wave[skipped : skipped + self._owed]
        self._owed -= len(wave)
        return wave
