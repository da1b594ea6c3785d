"""``causal-codec``: a small causal codec of our own, trained by ``speechlm train``.

:mod:`speechlm_tokenizers.causal_codec_model` says what it is made of,
:mod:`speechlm_tokenizers.causal_codec_training` how it learns. Whole recordings are computed in
the blocks that a stream is computed in, with the same state, so a stream equals the whole to the
bit. The tokenizer keeps the decoder's weights too, of which the vocoder ``causal-codec`` is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError
from speechlm.model.fast_linear import pack_linears
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.settings import at_least
from speechlm.streaming import State
from speechlm.units import Units
from speechlm_tokenizers.causal_codec_model import CausalCodecConfig, CausalCodecModel
from speechlm_tokenizers.codec_encoding import choose_codebooks, encode_each, no_codes
from speechlm_tokenizers.codec_loading import aligned, empty, fill
from speechlm_tokenizers.windows import Window, WindowedStream, Windows

if TYPE_CHECKING:
    from speechlm_tokenizers.causal_codec_training import CausalCodecTraining

KIND = "causal-codec"


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalCodecOptions:
    """What ``speechlm fit`` makes another ``causal-codec`` of, ``tokenizer.options`` of a run."""

    model: Path
    """Folder of a trained one."""
    num_codebooks: int | None = None
    """How many of its codebooks to use, the first ones; all where not given."""
    block_frames: int | None = None
    """Frames computed at once; as it was trained where not given."""

    def __post_init__(self) -> None:
        if self.block_frames is not None:
            at_least(1, "block_frames", self.block_frames)


class CausalCodec:
    """Residual units of a causal codec; trains anywhere, streams exactly."""

    streaming: Literal["exact"] = "exact"
    default_vocoder = KIND

    def __init__(self, config: CausalCodecConfig, tensors: Mapping[str, Tensor]) -> None:
        """Make one of its weights.

        Args:
            config: Its shape.
            tensors: The state of a :class:`CausalCodecModel`, float32.

        Raises:
            CheckpointError: They are not those of that shape.
        """
        self.config = config
        self.tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self.tensors)
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self.frame_rate = config.sample_rate / config.hop_length
        self.num_codebooks = config.num_codebooks
        self.vocab_size = config.vocab_size
        self.lookahead = (config.block_frames - 1) * config.hop_length
        self._model = fill(empty(partial(CausalCodecModel, config)), self.tensors, KIND)
        pack_linears(self._model.encoder)

    @property
    def unit_features(self) -> Tensor:
        """What the first codebook's units stand for, float32 [V, D]: like units, like rows."""
        with torch.no_grad():
            codes = torch.arange(self.vocab_size)[None]
            features: Tensor = self._model.quantizers.parts[0].decode(codes)
        return features

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        return encode_each(self, wave, lengths)

    def stream(self) -> WindowedStream:
        state: State = {}
        return WindowedStream(
            Windows(self.config.block_frames * self.hop_length),
            lambda block: self._encode_block(block, state),
            no_codes(self.num_codebooks),
        )

    @torch.no_grad()
    def _encode_block(self, block: Window, state: State) -> Tensor:
        """Tokenize a stream's next block, float32 [n]; int64 [K, ceil(n / hop_length)]."""
        # The last block is filled up: all of them have one shape.
        size = self.config.block_frames * self.hop_length
        samples = F.pad(block.content, (0, size - block.keep))
        hidden = self._model.encoder(samples[None], state)[0]
        codes: Tensor = self._model.quantizers.encode(hidden)
        return codes[:, : -(-block.keep // self.hop_length)]

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(CausalCodecConfig, part.config), part.tensors)

    @classmethod
    def training(cls, options: Mapping[str, Any], seed: int) -> CausalCodecTraining:
        """Begin to train one.

        Args:
            options: Fields of ``CausalCodecTrainingConfig``.
            seed: Decides the first weights, and what is drawn while it is trained.

        Raises:
            ConfigError: An option is not known or does not fit.
            CheckpointError: There is no teacher in the folder named.
        """
        from speechlm_tokenizers.causal_codec_training import begin_training

        return begin_training(cls, options, seed)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Take a trained one, all of it or its first codebooks alone.

        Args:
            waves: Not read: the codec is trained already.
            options: Fields of :class:`CausalCodecOptions`.
            seed: Decides nothing.

        Raises:
            ConfigError: No model is named, or it has not so many codebooks.
            CheckpointError: The folder holds no whole ``causal-codec``.
        """
        if "model" not in options:
            raise ConfigError(
                f"a {KIND!r} is trained before it is used: run 'speechlm train "
                f"train.part=tokenizer tokenizer.name={KIND}', or name the folder of a trained one "
                "as tokenizer.options.model=FOLDER"
            )
        wanted = build(CausalCodecOptions, options, "tokenizer.options")
        whole = cls.load(wanted.model)
        count = choose_codebooks(
            wanted.num_codebooks,
            None,
            known=whole.num_codebooks,
            each_kbps=0.0,
        )
        config = replace(
            whole.config,
            num_codebooks=count,
            block_frames=wanted.block_frames or whole.config.block_frames,
        )
        needed = empty(partial(CausalCodecModel, config)).state_dict()
        # Codebooks lie along the first axis of one tensor, or are tensors of their own.
        tensors = {
            name: whole.tensors[name][: len(tensor)].contiguous() for name, tensor in needed.items()
        }
        return cls(config, tensors)
