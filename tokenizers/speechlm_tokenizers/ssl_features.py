"""Encoders trained without labels, up to one of their layers: what ``ssl-kmeans`` clusters.

The networks are those of transformers, cut after the layer that is wanted: layer 0 is what
enters the first layer, layer L what leaves the L-th, as in ``hidden_states``. Some models have a
norm after their last layer; it is not applied (nor is it by transformers since 5.0, or by fairseq
where a layer is named).

A recording of T samples gives ``ceil(T / hop_length)`` frames. What the last one needs and the
recording does not have is zero: samples for encoders that read waves, and spectra, once each
band is normalized, for encoders that read log-mels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from speechlm.errors import CheckpointError, ConfigError, PluginError
from speechlm_tokenizers.codec_loading import aligned
from speechlm_tokenizers.phone_ctc_model import MEL_HOP, STACK, LogMels

SAMPLE_RATE = 16_000
MEL_WINDOW = 400
"""Samples that a log-mel spectrum sees."""
LOG_MEL = "wav2vec2-bert"
"""The family that reads log-mels; all others read waves."""

_TRANSFORMER = (
    *("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
)
_WAVE = (
    *_TRANSFORMER,
    *("feat_extract_activation", "conv_dim", "conv_stride", "conv_kernel", "conv_bias"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
)
_NORMS = ("feat_extract_norm", "do_stable_layer_norm")
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "hubert": (*_WAVE, *_NORMS, "feat_proj_layer_norm", "conv_pos_batch_norm"),
    "wav2vec2": (*_WAVE, *_NORMS),
    "wavlm": (*_WAVE, *_NORMS, "num_buckets", "max_bucket_distance"),
    "data2vec-audio": (*_WAVE, "conv_pos_kernel_size"),
    LOG_MEL: (
        *_TRANSFORMER,
        *("feature_projection_input_dim", "position_embeddings_type", "rotary_embedding_base"),
        *("max_source_positions", "left_max_position_embeddings", "right_max_position_embeddings"),
        "conv_depthwise_kernel_size",
    ),
}
"""The architectures, as transformers' ``model_type``, and which of its settings decide features.
XLS-R is a ``wav2vec2``, the HuBERTs of 25 Hz are ``hubert`` with one convolution more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """An encoder up to one layer: all but its weights that decides what it gives."""

    family: str
    """A key of ``FAMILIES``."""
    shape: dict[str, Any]
    """Its settings, by transformers' names."""
    num_layers: int
    """Layers that are computed: the number of the one whose output is taken."""
    batch_norm: bool = False
    """Whether convolutions of ``wav2vec2-bert`` see the future too and are normalized by stored
    means, as in the first w2v-BERT, not causal and by layer."""
    normalize: bool = False
    """Whether each recording is brought to mean 0 and variance 1: its samples, or its bands."""

    @property
    def dim(self) -> int:
        """Features a frame."""
        return int(self.shape["hidden_size"])

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return STACK * MEL_HOP if self.family == LOG_MEL else math.prod(self.shape["conv_stride"])

    @property
    def span(self) -> int:
        """Samples that the network needs for one frame, ``hop_length`` or more."""
        span = 1
        for kernel, stride in reversed(
            list(zip(self.shape["conv_kernel"], self.shape["conv_stride"], strict=True))
        ):
            span = (span - 1) * stride + kernel
        return span


class Encoder(nn.Module):
    """Recordings to features; without gradients."""

    def __init__(self, config: EncoderConfig, tensors: Mapping[str, Tensor]) -> None:
        """Build one.

        Args:
            config: What it is.
            tensors: Its weights, by the names of :func:`weight_names`.

        Raises:
            CheckpointError: Weights are missing or of another shape.
        """
        super().__init__()
        self.config = config
        self.network: Any = _network(config)
        wanted = self.network.state_dict()
        for name, tensor in wanted.items():
            if name not in tensors:
                raise CheckpointError(
                    f"the encoder's tensor {name} is missing: the checkpoint is partial or of "
                    "another architecture; download or save it again"
                )
            if tensors[name].shape != tensor.shape:
                raise CheckpointError(
                    f"the encoder's tensor {name} is {list(tensors[name].shape)}, but its "
                    f"configuration says {list(tensor.shape)}; files were mixed up: download or "
                    "save it again"
                )
        own = {name: _as_float(tensors[name].detach()) for name in wanted}
        self.network.load_state_dict(aligned(own), assign=True)
        self.mels = LogMels(self._num_mels) if config.family == LOG_MEL else None
        self.eval().requires_grad_(False)

    @property
    def _num_mels(self) -> int:
        return int(self.config.shape["feature_projection_input_dim"]) // STACK

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, for saving."""
        return dict(self.network.state_dict())

    @torch.inference_mode()
    def forward(self, wave: Tensor) -> Tensor:
        """Features of one recording, float32 [T] to [ceil(T / hop_length), D]."""
        inputs = self.inputs(wave)[None]
        with _full_precision(inputs.device):
            found: Tensor = self.network(inputs).last_hidden_state
        return found[0]

    @property
    def can_batch(self) -> bool:
        """Whether :meth:`batch` gives what :meth:`forward` gives, but for rounding."""
        # There, what stands for positions is not zero beyond a recording's end, as it should be.
        stored_mean = self.config.shape.get("conv_pos_batch_norm")
        return not stored_mean and self.config.family != "data2vec-audio"

    @torch.inference_mode()
    def batch(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Features of several recordings at once; rounding differs from :meth:`forward`'s.

        What normalizes over time, the first convolution, sees each recording alone.
        """
        if not self.can_batch:
            return [self(wave) for wave in waves]
        inputs = [self.inputs(wave) for wave in waves]
        with _full_precision(inputs[0].device):
            return self._batch(inputs)

    def _batch(self, inputs: list[Tensor]) -> list[Tensor]:
        if self.config.family != LOG_MEL:
            inputs = [self.network.feature_extractor(wave[None])[0].T for wave in inputs]
        sizes = torch.tensor([len(each) for each in inputs], device=inputs[0].device)
        padded = pad_sequence(inputs, batch_first=True)
        mask = torch.arange(padded.shape[1], device=sizes.device) < sizes[:, None]
        if self.config.family == LOG_MEL:
            hidden = self.network(padded, attention_mask=mask).last_hidden_state
        else:
            projected = self.network.feature_projection(padded)
            if isinstance(projected, tuple):  # with the features before it
                projected = projected[0]
            with warnings.catch_warnings():
                # WavLM's attention has a mask of one kind and a bias of another.
                warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
                hidden = self.network.encoder(projected, attention_mask=mask)[0]
        return [row[:size] for row, size in zip(hidden, sizes.tolist(), strict=True)]

    def inputs(self, wave: Tensor) -> Tensor:
        """What the network reads of float32 [T]: samples [T'], or log-mels [F, bands]."""
        wave = wave.float()
        num_frames = -(-len(wave) // self.config.hop_length)
        if self.mels is not None:
            return self._log_mels(self.mels, wave, num_frames)
        if self.config.normalize:
            wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        wanted = (num_frames - 1) * self.config.hop_length + self.config.span
        return F.pad(wave, (0, wanted - len(wave)))

    def _log_mels(self, mels: LogMels, wave: Tensor, num_frames: int) -> Tensor:
        bands = mels.spectra(F.pad(wave, (0, max(0, MEL_WINDOW - len(wave))))[None])[0]
        if self.config.normalize:
            bands = bands - bands.mean(dim=0)
            variance = bands.square().sum(dim=0) / max(1, len(bands) - 1)
            bands = bands / (variance + 1e-7).sqrt()
        bands = F.pad(bands, (0, 0, 0, STACK * num_frames - len(bands)))
        return rearrange(bands.float(), "(f s) m -> f (s m)", s=STACK)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Convolutions of a GPU as precise as those of a CPU, and the same every time."""
    if device.type != "cuda":
        return nullcontext()
    flags: Any = torch.backends.cudnn.flags
    return flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)  # type: ignore[no-any-return]


def check_layer(model: str, layer: int, num_layers: int) -> None:
    """Refuse a layer that the encoder lacks, with a ConfigError."""
    if not 0 <= layer <= num_layers:
        raise ConfigError(
            f"{model} has {num_layers} layers: expected tokenizer.options.layer within "
            f"0..{num_layers}, got {layer}"
        )


def weight_names(config: EncoderConfig) -> list[str]:
    """The tensors that an encoder is made of, by transformers' names, weight norm taken off."""
    return list(_network(config).state_dict())


def _network(config: EncoderConfig) -> nn.Module:
    """The network of transformers, cut after the last layer, without weights."""
    try:
        import transformers
    except ImportError as error:
        raise PluginError(
            f"tokenizer 'ssl-kmeans' needs transformers: {error}; run 'pip install transformers'"
        ) from error

    auto: Any = transformers.AutoModel
    settings = transformers.AutoConfig.for_model(
        config.family,
        **config.shape,
        num_hidden_layers=config.num_layers,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        layerdrop=0.0,
    )
    with torch.device("meta"):
        network: nn.Module = auto.from_config(settings)
        encoder: Any = network.encoder
        if config.shape.get("do_stable_layer_norm"):
            encoder.layer_norm = nn.Identity()
        if config.batch_norm:
            for layer in encoder.layers:
                layer.conv_module = _SymmetricConvolution(config)
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    if getattr(encoder, "embed_positions", None) is not None:
        # It computes a table when it is made.
        encoder.embed_positions = type(encoder.embed_positions)(settings)
    return network


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class _SymmetricConvolution(nn.Module):
    """The convolution of a conformer's layer that sees as much before as after.

    Source:
        Gulati et al. 2020 (Conformer), arXiv:2005.08100.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, kernel = config.dim, config.shape["conv_depthwise_kernel_size"]
        self.layer_norm = nn.LayerNorm(dim, eps=config.shape["layer_norm_eps"])
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding="same", groups=dim, bias=False)
        self.batch_norm = nn.BatchNorm1d(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Filter float [B, F, D]; frames beyond a recording's end, not in the mask, are zero."""
        hidden = self.layer_norm(hidden_states)
        if attention_mask is not None:
            hidden = hidden.masked_fill(~attention_mask.bool()[..., None], 0.0)
        hidden = F.glu(self.pointwise_conv1(hidden.transpose(1, 2)), dim=1)
        hidden = F.silu(self.batch_norm(self.depthwise_conv(hidden)))
        convolved: Tensor = self.pointwise_conv2(hidden)
        return convolved.transpose(1, 2)
