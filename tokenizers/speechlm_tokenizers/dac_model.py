"""DAC's shape: its configuration in transformers, and how far its convolutions reach.

Nothing in it looks further than its convolutions do, to either side. So a window with that much
around it gives what the whole would, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechlm.errors import ConfigError
from speechlm.settings import build
from speechlm_tokenizers.codec_loading import empty

DILATIONS = (1, 3, 9)
"""Of the residual units of each stage, kernel 7."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DacArchitecture:
    """Sizes of a DAC, or of the acoustic half of an X-Codec."""

    sample_rate: int
    """Hz."""
    encoder_hidden_size: int
    """Channels after the first convolution; each downsampling doubles them."""
    decoder_hidden_size: int
    """Channels after the decoder's first convolution; each upsampling halves them."""
    hidden_size: int
    """Features of a frame."""
    downsampling_ratios: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]
    num_codebooks: int
    codebook_size: int
    codebook_dim: int
    """Features of a codebook's vectors."""

    def __post_init__(self) -> None:
        if min(self.downsampling_ratios, default=0) < 1:
            raise ConfigError(
                f"downsampling_ratios must be at least 1 each, got {self.downsampling_ratios}"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> DacArchitecture:
        """Read transformers' ``config.json``, which may leave out what is usual.

        Raises:
            ConfigError: A value does not fit; ``where`` says where it stands.
        """
        down = config.get("downsampling_ratios", [2, 4, 8, 8])
        encoder = config.get("encoder_hidden_size", 64)
        values = {
            "sample_rate": config.get("sampling_rate", 16_000),
            "encoder_hidden_size": encoder,
            "decoder_hidden_size": config.get("decoder_hidden_size", 1536),
            "hidden_size": config.get("hidden_size", encoder * 2 ** len(down)),
            "downsampling_ratios": down,
            "upsampling_ratios": config.get("upsampling_ratios", down[::-1]),
            "codebook_size": config.get("codebook_size", 1024),
            "codebook_dim": config.get("codebook_dim", 8),
            "num_codebooks": config.get("n_codebooks", 9),
        }
        return build(cls, values, where)

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.downsampling_ratios)

    @property
    def codebook_kbps(self) -> float:
        """What a codebook takes, by whole frames a second as its authors count."""
        frames = math.ceil(self.sample_rate / self.hop_length)
        return math.log2(self.codebook_size) * frames / 1000

    def settings(self) -> dict[str, Any]:
        """Arguments of transformers' ``DacConfig``."""
        return {
            "sampling_rate": self.sample_rate,
            "encoder_hidden_size": self.encoder_hidden_size,
            "decoder_hidden_size": self.decoder_hidden_size,
            "hidden_size": self.hidden_size,
            "downsampling_ratios": list(self.downsampling_ratios),
            "upsampling_ratios": list(self.upsampling_ratios),
            "n_codebooks": self.num_codebooks,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
        }

    def encoder_reach(self) -> tuple[int, int]:
        """Frames before and after a frame whose samples shape its units."""
        low = high = 0
        for kernel, stride, dilation, padding in reversed(self._encoder_convolutions()):
            low = low * stride - padding
            high = high * stride - padding + (kernel - 1) * dilation
        hop = self.hop_length
        return -(low // hop), -((hop - 1 - high) // hop)

    def decoder_reach(self) -> tuple[int, int]:
        """Frames before and after a frame whose units shape its samples."""
        low, high = 0, math.prod(self.upsampling_ratios) - 1
        low, high = low - 3, high + 3
        for ratio in reversed(self.upsampling_ratios):
            residual = sum(3 * dilation for dilation in DILATIONS)
            low, high = low - residual, high + residual
            # Result o of the transposed convolution is made of inputs i with
            # 0 <= o + padding - i * ratio < 2 * ratio.
            padding = math.ceil(ratio / 2)
            low = -((2 * ratio - 1 - low - padding) // ratio)
            high = (high + padding) // ratio
        return -(low - 3), high + 3

    def _encoder_convolutions(self) -> list[tuple[int, int, int, int]]:
        """Kernel, stride, dilation and padding of each, as they follow one another."""
        layers = [(7, 1, 1, 3)]
        for ratio in self.downsampling_ratios:
            layers += [(7, 1, dilation, 3 * dilation) for dilation in DILATIONS]
            layers.append((2 * ratio, ratio, 1, math.ceil(ratio / 2)))
        return [*layers, (3, 1, 1, 1)]


def empty_dac(shape: DacArchitecture) -> Any:
    """Transformers' model, for :func:`speechlm_tokenizers.codec_loading.fill`."""
    import transformers

    library: Any = transformers
    return empty(lambda: library.DacModel(library.DacConfig(**shape.settings())))
