"""``xcodec``: X-Codec's decoder, by windows on a fixed grid with as much around each as it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.units import Units
from speechlm_tokenizers.codec_loading import aligned
from speechlm_tokenizers.windows import Window, Windows
from speechlm_tokenizers.xcodec import XCodec
from speechlm_tokenizers.xcodec_model import ENCODER_ONLY, XCodecArchitecture, build_xcodec
from speechlm_vocoders.codec_decoding import DecodingStream, decode_each, refuse_voice

KIND = "xcodec"


@dataclass(frozen=True, kw_only=True, slots=True)
class XCodecDecoderConfig:
    """What an ``xcodec`` decoder was built for."""

    tokenizer_fingerprint: str
    architecture: XCodecArchitecture
    window: int
    """Frames that a window stands for: a second's, as the decoder needs little around it."""


class XCodecDecoder:
    """Renders units of ``xcodec`` at 16 kHz, in the voice that they keep."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: XCodecDecoderConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        shape = config.architecture
        self.sample_rate = shape.acoustic.sample_rate
        self.hop_length = shape.acoustic.hop_length
        self.num_codebooks = shape.num_codebooks
        self.vocab_size = shape.codebook_size
        self._before, self._after = shape.acoustic.decoder_reach()
        self.lookahead = config.window + self._after - 1
        self._model = build_xcodec(shape, self._tensors, KIND, leave_out=ENCODER_ONLY)

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one from the decoder's weights, which the tokenizer keeps."""
        if not isinstance(tokenizer, XCodec):
            raise PluginError(
                f"vocoder {KIND!r} renders units of 'xcodec', got {tokenizer.fingerprint!r}; "
                "choose another vocoder: 'speechlm list' shows them"
            )
        config = XCodecDecoderConfig(
            tokenizer_fingerprint=tokenizer.fingerprint,
            architecture=tokenizer.config.architecture,
            window=round(tokenizer.frame_rate),
        )
        tensors = {
            name: tensor
            for name, tensor in tokenizer.tensors.items()
            if not name.startswith(ENCODER_ONLY)
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
        windows = Windows(self.config.window, before=self._before, after=self._after)
        return DecodingStream(windows, self._decode_window, self.num_codebooks, self.vocab_size)

    @torch.no_grad()
    def _decode_window(self, window: Window) -> Tensor:
        """Render a window of int64 [K, f]; give its own part, float32 [keep * hop_length]."""
        wave: Tensor = self._model.decode(window.content[None], return_dict=True).audio_values
        first = window.skip * self.hop_length
        return wave[0, 0, first : first + window.keep * self.hop_length]

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(XCodecDecoderConfig, part.config), part.tensors)
