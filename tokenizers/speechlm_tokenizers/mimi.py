"""``mimi``: Kyutai's codec of 12.5 frames a second, whose first codebook is semantic.

Nothing is fitted: a checkpoint of transformers or of moshi is read, and the folder that is saved
needs neither afterwards. It holds the decoder too, which the vocoder of the same name takes.

A stream computes blocks of ``block`` frames with what the model remembers, and a whole recording
is such a stream: the same units to the last, however it is cut or batched. A recording is filled
up with silence to whole frames, as moshi does; where its length is one already, the units are
those of transformers' ``MimiModel.encode``.

Source:
    Défossez et al. 2024 (Moshi), arXiv:2410.00037; weights: https://huggingface.co/kyutai/mimi.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from speechlm.errors import ConfigError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.settings import at_least, build
from speechlm.streaming import Blocks
from speechlm.units import Units
from speechlm_tokenizers.mimi_checkpoint import PUBLISHED, read_checkpoint
from speechlm_tokenizers.mimi_model import Encoder, MimiArchitecture, State

KIND = "mimi"


@dataclass(frozen=True, kw_only=True, slots=True)
class MimiOptions:
    """Where the weights are, and how much of them is used: ``tokenizer.options`` of a run."""

    model: str = PUBLISHED
    """Folder or hub id of transformers, or moshi's ``.safetensors`` file, here or on the hub as
    ``kyutai/moshiko-pytorch-bf16/tokenizer-e351c8d8-checkpoint125.safetensors``."""
    sha256: str | None = None
    """What the SHA-256 of the file of weights must begin with; None takes any."""
    num_codebooks: int = 8
    """Codebooks, of the 32 of the published model; the semantic one comes first."""
    block: int = 1
    """Frames computed at once, by the tokenizer and by the vocoder made for it."""

    def __post_init__(self) -> None:
        at_least(1, "num_codebooks", self.num_codebooks)
        at_least(1, "block", self.block)


@dataclass(frozen=True, kw_only=True, slots=True)
class MimiConfig:
    """What a saved ``mimi`` is, beside its weights."""

    architecture: MimiArchitecture = field(default_factory=MimiArchitecture)
    block: int = 1
    """Frames computed at once. It decides how sums are rounded, and so which unit wins where two
    are all but equally near."""


class Mimi:
    """Mimi's encoder and quantizer: 24 kHz to 12.5 frames a second; streams exactly."""

    streaming: Literal["exact"] = "exact"
    default_vocoder = KIND

    def __init__(self, config: MimiConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = dict(tensors)
        """All weights, the decoder's too, as :mod:`speechlm_tokenizers.mimi_model` names them."""
        self.fingerprint = fingerprint(KIND, asdict(config), self.tensors)
        self.num_codebooks, self.vocab_size, _ = self.tensors["quantizer.codebooks"].shape
        self.sample_rate = config.architecture.sample_rate
        self.hop_length = config.architecture.hop_length
        self.frame_rate = self.sample_rate / self.hop_length
        self.lookahead = (config.block - 1) * self.hop_length
        self._encoder = Encoder(self.tensors, config.architecture, config.block)

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        sizes = [wave.shape[1]] * wave.shape[0] if lengths is None else lengths.tolist()
        return [
            Units(
                codes=self._encode_one(row[:size]),
                frame_rate=self.frame_rate,
                fingerprint=self.fingerprint,
            )
            for row, size in zip(wave, sizes, strict=True)
        ]

    def _encode_one(self, wave: Tensor) -> Tensor:
        stream = self.stream()
        return torch.cat([stream.push(wave), stream.finish()], dim=1)

    def stream(self) -> MimiStream:
        return MimiStream(self, self._encoder)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(MimiConfig, part.config), part.tensors)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        """Nothing is fitted."""
        return False

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Read a checkpoint.

        Args:
            waves: Not read.
            options: Fields of :class:`MimiOptions`.
            seed: Decides nothing.

        Raises:
            ConfigError: An option is not known, or the checkpoint has fewer codebooks.
            CheckpointError: See :func:`speechlm_tokenizers.mimi_checkpoint.read_checkpoint`.
        """
        chosen = build(MimiOptions, options, "tokenizer.options")
        architecture, tensors = read_checkpoint(chosen.model, chosen.sha256)
        codebooks = tensors["quantizer.codebooks"]
        if chosen.num_codebooks > len(codebooks):
            raise ConfigError(
                f"tokenizer.options.num_codebooks: {chosen.model} has 1..{len(codebooks)}, "
                f"got {chosen.num_codebooks}"
            )
        tensors["quantizer.codebooks"] = codebooks[: chosen.num_codebooks].clone()
        return cls(MimiConfig(architecture=architecture, block=chosen.block), tensors)


class MimiStream:
    """One live recording; see :class:`speechlm.protocols.TokenizerStream`."""

    def __init__(self, tokenizer: Mimi, encoder: Encoder) -> None:
        self._hop, self._encoder = tokenizer.hop_length, encoder
        self._nothing = torch.zeros(tokenizer.num_codebooks, 0, dtype=torch.int64)
        self._blocks = Blocks(tokenizer.config.block * self._hop)
        self._state = State()

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] at ``sample_rate``; give the units now certain, int64 [K, m]."""
        codes = [self._encoder.encode(block, self._state) for block in self._blocks.push(samples)]
        return torch.cat([self._nothing, *codes], dim=1)

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [K, m]; the end is padded with silence."""
        last = self._blocks.finish()
        if last is None:
            return self._nothing
        block, samples = last
        return self._encoder.encode(block, self._state)[:, : -(-samples // self._hop)]
