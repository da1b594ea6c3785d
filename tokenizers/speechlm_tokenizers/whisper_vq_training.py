"""Training of ``whisper-vq``: a codebook in the middle of a Whisper, by CTC over its upper layers.

GLM-4-Voice's authors train theirs through Whisper's decoder on transcribed speech. Here labels
are read by CTC, which needs no decoder and, as it needs more frames than labels, reads each
pooled unit as often as frames went into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from speechlm.errors import CheckpointError, ConfigError, InputError
from speechlm.settings import at_least, build
from speechlm_tokenizers.encoder_checkpoint import (
    CONFIG_NAME,
    open_folder,
    read_shape,
    read_tensors,
)
from speechlm_tokenizers.phone_ctc_training import CTCTraining
from speechlm_tokenizers.phones import LabelKind, Labels
from speechlm_tokenizers.whisper_vq import CODEBOOK, WhisperVQ, WhisperVQConfig
from speechlm_tokenizers.whisper_vq_model import (
    FRAME,
    MARGIN,
    Past,
    WhisperEncoder,
    WhisperLayer,
    WhisperMels,
    WhisperShape,
    encoder_name,
    whisper_sizes,
)

Made = TypeVar("Made", bound=WhisperVQ)


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperVQTraining:
    """The options of training, ``tokenizer.options`` of a run."""

    model: str = "openai/whisper-base"
    """A Whisper to start from, folder or hub id."""
    labels: LabelKind = "phones"
    """What must be read from the units: phones of the texts, or characters."""
    language: str = "en-us"
    """Of the texts, for phones: espeak-ng's code."""
    alphabet: str = ""
    """Each label's character; empty for those that ``labels`` needs."""
    num_units: int = 1024
    """Vectors of the codebook."""
    bottleneck_layer: int = 0
    """Layers below the codebook; 0 for half of them."""
    pooling: int = 4
    """Frames, of 20 ms, that share a unit."""
    block_s: float = 0.0
    """Seconds of a block beyond whose end attention hears nothing, with convolutions that hear
    no future: what a stream needs. 0 for Whisper as it was."""
    stream: Literal["window", "block"] = "window"
    """How much is heard before units come."""
    commitment: float = 0.25
    """Weight of the distance between vectors and their codes."""
    quantize_after: int = 300
    """Steps before the codebook starts."""

    def __post_init__(self) -> None:
        at_least(2, "num_units", self.num_units)
        at_least(0, "bottleneck_layer", self.bottleneck_layer)
        at_least(1, "pooling", self.pooling)
        at_least(0, "quantize_after", self.quantize_after)
        if not (0 <= self.block_s <= 30 and self.commitment >= 0):
            raise ConfigError(
                "expected block_s within 0..30 s and commitment at least 0, got "
                f"{self.block_s} and {self.commitment}"
            )


class WhisperBody(nn.Module):
    """A Whisper encoder with a place for the codebook, as :class:`CTCTraining` takes it."""

    def __init__(self, shape: WhisperShape, num_layers: int) -> None:
        """Build one of ``num_layers`` layers, those of ``shape`` below the codebook."""
        super().__init__()
        self.shape = shape
        self.mels = WhisperMels(shape.num_mels)
        self.encoder = WhisperEncoder(shape)
        self.layers = nn.ModuleDict(
            {
                str(index): WhisperLayer(shape.model_dim, shape.num_heads, shape.ffn_dim)
                for index in range(shape.num_layers, num_layers)
            }
        )
        self.layer_norm = nn.LayerNorm(shape.model_dim)

    def features(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, T] to Whisper's log-mels, two a frame, [B, F, 2 * mels]; and frames."""
        if waves.shape[1] > self.shape.max_frames * FRAME:
            raise InputError(
                f"expected recordings of at most {self.shape.max_frames * FRAME / 16_000:g} s, as "
                f"Whisper hears, got {waves.shape[1] / 16_000:.1f} s; cut the corpus into shorter "
                "recordings"
            )
        waves = F.pad(waves, (0, -waves.shape[1] % (FRAME * self.shape.pooling)))
        spectra = self.mels.spectra(F.pad(waves, (MARGIN, MARGIN), mode="reflect"))[..., :-1]
        mels = self.mels.compress(spectra, spectra.amax(dim=(1, 2), keepdim=True))
        return rearrange(mels, "b m (f s) -> b f (s m)", s=2), -(-lengths // FRAME)

    def lower(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What to quantize: float [B, F / pooling, D], and how many of each, int64 [B]."""
        mels = rearrange(features, "b f (s m) -> b m (f s)", s=2)
        vectors: Tensor = self.encoder(mels, self._real(mels.shape[2] // 2, frames), Past())
        return vectors, -(-frames // self.shape.pooling)

    def upper(self, vectors: Tensor, frames: Tensor) -> Tensor:
        """From quantized vectors to what labels are read from, float [B, F, D]."""
        hidden = vectors.repeat_interleave(self.shape.pooling, dim=1)
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        real = self._real(hidden.shape[1], frames)
        for layer in self.layers.values():
            hidden = layer(hidden, real)
        result: Tensor = self.layer_norm(hidden)
        return result

    def _real(self, count: int, frames: Tensor) -> Tensor:
        return torch.arange(count, device=frames.device) < frames[:, None]


def begin_training(kind: type[Made], options: Mapping[str, Any], seed: int) -> CTCTraining:
    """See :meth:`WhisperVQ.training`."""
    chosen = build(WhisperVQTraining, options, "tokenizer.options")
    labels = Labels(kind=chosen.labels, language=chosen.language, alphabet=chosen.alphabet)
    folder = open_folder(chosen.model, "openai/whisper-base")
    values = read_shape(folder)
    try:
        sizes = whisper_sizes(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: {error}") from error
    num_layers = sizes.pop("num_layers")
    position = chosen.bottleneck_layer or (num_layers + 1) // 2
    if position >= num_layers:
        raise ConfigError(
            f"expected tokenizer.options.bottleneck_layer below {num_layers}, the layers of "
            f"{chosen.model}, got {position}"
        )
    shape = WhisperShape(
        **sizes,
        num_layers=position,
        pooling_layer=position,
        pooling=chosen.pooling,
        num_units=chosen.num_units,
        causal_convolution=chosen.block_s > 0,
        attention="block" if chosen.block_s > 0 else "full",
        block=max(1, round(chosen.block_s * 50 / chosen.pooling)) * chosen.pooling,
    )
    config = WhisperVQConfig(shape=shape, stream=chosen.stream)
    body = WhisperBody(shape, num_layers)
    wanted = {encoder_name(name): tensor for name, tensor in body.state_dict().items()}
    weights = read_tensors(folder, wanted, encoder_name)
    own = {name: weights[encoder_name(name)] for name in body.state_dict()}
    body.load_state_dict(own, assign=True)
    body.encoder.embed_positions.requires_grad_(False)  # sines of Whisper's, never trained

    def make(trained: CTCTraining) -> Made:
        tensors = trained.tensors()
        encoder = {
            encoder_name(name): tensor
            for name, tensor in tensors.items()
            if name.startswith("encoder.")
        }
        return kind(config, {**encoder, CODEBOOK: tensors["codebook"]})

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CTCTraining(
            body,
            labels,
            make,
            dim=shape.model_dim,
            hop_length=FRAME * shape.pooling,
            num_units=chosen.num_units,
            commitment=chosen.commitment,
            quantize_after=chosen.quantize_after,
            seed=seed,
        )
