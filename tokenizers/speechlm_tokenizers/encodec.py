"""``encodec``: EnCodec's units, of its 24 kHz or 48 kHz model, at any number of codebooks.

The 24 kHz model is causal and streams with state, block by block; whole recordings are computed
in the same blocks, so a stream is equal to the whole to the bit. The 48 kHz model codes segments
of a second, each on its own. Three things differ from how the package calls that one:

* Segments stand side by side, where the package lets them overlap by 10 ms: an overlap of half a
  frame would give more than ``ceil(T / hop_length)`` frames.
* A segment's loudness, which the package hands over beside the codes, is one more codebook: the
  last row says it in even steps of decibels, the same in all frames of a segment.
* It is a stereo model: a mono recording is given to both channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.settings import at_least
from speechlm.streaming import State
from speechlm.units import Units
from speechlm_tokenizers.codec_encoding import choose_codebooks, encode_each, no_codes
from speechlm_tokenizers.codec_loading import aligned, below, empty, fill
from speechlm_tokenizers.encodec_loading import load_encodec
from speechlm_tokenizers.encodec_model import (
    Architecture,
    Encoder,
    ResidualQuantizer,
    scale_code,
)
from speechlm_tokenizers.windows import WindowedStream, Windows

KIND = "encodec"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodecOptions:
    """What ``speechlm fit`` makes an ``encodec`` of, ``tokenizer.options`` of a run."""

    model: str = "encodec_24khz"
    """``encodec_24khz`` or ``encodec_48khz``, which are downloaded unless they are in torch.hub's
    folder; a file of the ``encodec`` package; or a folder or hub id of transformers."""
    num_codebooks: int | None = None
    """Residual codebooks to use."""
    bandwidth_kbps: float | None = None
    """The same by the bits that they take; 6 where neither is given."""
    block_frames: int = 8
    """Frames computed at once by a causal model: more are faster, fewer come sooner."""
    sha256: str | None = None
    """What the SHA-256 of the weights' file must begin with, 8 to 64 hexadecimal digits."""

    def __post_init__(self) -> None:
        at_least(1, "block_frames", self.block_frames)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodecConfig:
    """What an ``encodec`` is."""

    architecture: Architecture
    num_codebooks: int
    """Residual codebooks, without the one that says the loudness."""
    block_frames: int
    """Frames computed at once: a whole segment where there are segments."""

    @property
    def first_frames(self) -> int:
        """Frames of the first block."""
        if self.architecture.segment is not None:
            return self.block_frames
        return max(self.block_frames, self.architecture.least_block)


class Encodec:
    """Residual units of EnCodec: 24 or 48 kHz, 75 or 150 a second; streams exactly."""

    streaming: Literal["exact"] = "exact"
    default_vocoder = KIND

    def __init__(self, config: EncodecConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self.tensors)
        shape = config.architecture
        self.sample_rate = shape.sample_rate
        self.hop_length = shape.hop_length
        self.frame_rate = self.sample_rate / self.hop_length
        self.num_codebooks = config.num_codebooks + shape.normalize
        self.vocab_size = shape.codebook_size
        self.lookahead = (config.first_frames - 1) * self.hop_length
        self._encoder = fill(empty(partial(Encoder, shape)), below(self.tensors, "encoder."), KIND)
        self._quantizer = ResidualQuantizer(self.tensors["codebooks"])

    @property
    def unit_features(self) -> Tensor:
        """The first codebook's vectors, float32 [V, D]: similar units have similar rows."""
        return self.tensors["codebooks"][0]

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        return encode_each(self, wave, lengths)

    def stream(self) -> WindowedStream:
        state: State = {}
        blocks = Windows(
            self.config.block_frames * self.hop_length,
            first=self.config.first_frames * self.hop_length,
        )
        return WindowedStream(
            blocks,
            lambda block: self._encode_block(block.content, state),
            no_codes(self.num_codebooks),
        )

    @torch.no_grad()
    def _encode_block(self, samples: Tensor, state: State) -> Tensor:
        """Tokenize a stream's next block, or a segment.

        Args:
            samples: float32 [n]; whole frames unless it is the last.
            state: The stream's.

        Returns:
            int64 [K, ceil(n / hop_length)].
        """
        shape = self.config.architecture
        if not shape.normalize:
            return self._codes(samples, state)
        scale = 1e-8 + samples.square().mean().sqrt()
        codes = self._codes(samples / scale, state)
        level = scale_code(scale, shape.codebook_size)
        return torch.cat([codes, level.expand(1, codes.shape[1])])

    def _codes(self, samples: Tensor, state: State) -> Tensor:
        shape = self.config.architecture
        # Segments know nothing of each other: a state would only be carried along.
        past = state if shape.causal else None
        features = self._encoder(samples.expand(1, shape.channels, -1), past)
        return self._quantizer.encode(features)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(EncodecConfig, part.config), part.tensors)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Take a published or own EnCodec.

        Args:
            waves: Not read: the checkpoint is all it takes.
            options: Fields of :class:`EncodecOptions`.
            seed: Decides nothing.

        Raises:
            ConfigError: An option is not known or does not fit the model.
            CheckpointError: The model cannot be had, is damaged, or is no EnCodec.
        """
        wanted = build(EncodecOptions, options, "tokenizer.options")
        architecture, tensors, codebooks = load_encodec(wanted.model, wanted.sha256)
        count = choose_codebooks(
            wanted.num_codebooks,
            wanted.bandwidth_kbps,
            known=len(codebooks),
            each_kbps=architecture.codebook_kbps,
            usual_kbps=6.0,
        )
        block = wanted.block_frames
        if architecture.segment is not None:
            block = architecture.segment // architecture.hop_length
        config = EncodecConfig(architecture=architecture, num_codebooks=count, block_frames=block)
        return cls(config, {**tensors, "codebooks": torch.stack(codebooks[:count])})
