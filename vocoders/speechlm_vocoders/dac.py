"""``dac``: DAC's decoder, by windows on a fixed grid with as much around each as it looks at.

Where an upsampling is by an odd ratio, as in the 16 and 24 kHz models, the published decoder gives
a few samples less than its frames stand for (8); silence takes their place at the very end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.config import build
from speechlm.errors import PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.units import Units
from speechlm_tokenizers.codec_loading import aligned, fill
from speechlm_tokenizers.dac import Dac, DacConfig
from speechlm_tokenizers.dac_model import empty_dac
from speechlm_tokenizers.windows import Window, Windows
from speechlm_vocoders.codec_decoding import DecodingStream, decode_each, refuse_voice

KIND = "dac"


@dataclass(frozen=True, kw_only=True, slots=True)
class DacDecoderConfig:
    """What a ``dac`` decoder was built for."""

    tokenizer_fingerprint: str
    tokenizer: DacConfig


class DacDecoder:
    """Renders units of ``dac``, in the voice that they keep."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: DacDecoderConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        shape = config.tokenizer.architecture
        self.sample_rate = shape.sample_rate
        self.hop_length = shape.hop_length
        self.num_codebooks = shape.num_codebooks
        self.vocab_size = shape.codebook_size
        self._before, self._after = shape.decoder_reach()
        self.lookahead = config.tokenizer.window + self._after - 1
        model = empty_dac(shape)
        model.encoder = nn.Identity()
        self._model = fill(model, self._tensors, KIND)

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one from the decoder's weights, which the tokenizer keeps."""
        if not isinstance(tokenizer, Dac):
            raise PluginError(
                f"vocoder {KIND!r} renders units of 'dac', got {tokenizer.fingerprint!r}; "
                "choose another vocoder: 'speechlm list' shows them"
            )
        config = DacDecoderConfig(
            tokenizer_fingerprint=tokenizer.fingerprint, tokenizer=tokenizer.config
        )
        tensors = {
            name: tensor
            for name, tensor in tokenizer.tensors.items()
            if not name.startswith("encoder.")
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
        windows = Windows(self.config.tokenizer.window, before=self._before, after=self._after)
        return DecodingStream(windows, self._decode_window, self.num_codebooks, self.vocab_size)

    @torch.no_grad()
    def _decode_window(self, window: Window) -> Tensor:
        """Render a window of int64 [K, f]; give its own part, float32 [keep * hop_length]."""
        wave: Tensor = self._model.decode(audio_codes=window.content[None]).audio_values[0]
        first, samples = window.skip * self.hop_length, window.keep * self.hop_length
        wave = wave[first : first + samples]
        return F.pad(wave, (0, samples - len(wave)))

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(DacDecoderConfig, part.config), part.tensors)
