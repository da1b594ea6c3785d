"""The encoder of ``phone-ctc``: Kaldi's log-mels, and conformer layers as w2v-BERT 2.0 has them.

Weights have the names that transformers' ``Wav2Vec2BertModel`` gives them, so that a published
w2v-BERT can be what training starts from, and what was trained here opens as one: see
:func:`read_encoder` and :func:`write_encoder`. Positions enter as clamped distances and through
causal convolutions, so recordings may have any length.

Sources:
    Gulati et al. 2020 (conformer), arXiv:2005.08100; Barrault et al. 2023 (w2v-BERT 2.0),
    arXiv:2312.05187.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from speechlm.errors import CheckpointError, ConfigError
from speechlm.files import write_folder_aside, write_json
from speechlm.settings import at_least, build
from speechlm_tokenizers.encoder_checkpoint import (
    CONFIG_NAME,
    open_folder,
    read_shape,
    read_tensors,
)

SAMPLE_RATE = 16_000
MEL_HOP = 160
"""Samples between two log-mel spectra."""
WINDOW = 400
FFT_SIZE = 512
STACK = 2
"""Spectra that a frame of the encoder reads side by side."""
FRAME = STACK * MEL_HOP
"""Samples a frame of the encoder, of which there are 50 a second."""
MARGIN = (WINDOW - MEL_HOP) // 2
"""Samples on either side of a hop that its spectrum sees."""
PREEMPHASIS = 0.97
FLOOR = 2.0**-23
"""Least energy of a band."""


PUBLISHED = {
    "num_layers": 24,
    "model_dim": 1024,
    "num_heads": 16,
    "ffn_dim": 4096,
    "kernel_size": 31,
    "left_distance": 64,
    "right_distance": 8,
}
"""The shape of facebook/w2v-bert-2.0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape:
    """Sizes of the encoder, as in a ``Wav2Vec2BertConfig``."""

    num_mels: int = 80
    num_layers: int = 6
    model_dim: int = 192
    num_heads: int = 4
    ffn_dim: int = 576
    """Inner width of the two feed-forward modules of each layer."""
    kernel_size: int = 15
    """Frames that the convolution of each layer sees, the present one the last."""
    left_distance: int = 64
    """Frames back from which on all are equally far for attention."""
    right_distance: int = 8
    """The same, ahead."""

    def __post_init__(self) -> None:
        for name in ("num_mels", "num_layers", "model_dim", "num_heads", "ffn_dim", "kernel_size"):
            at_least(1, name, getattr(self, name))
        at_least(0, "left_distance", self.left_distance)
        at_least(0, "right_distance", self.right_distance)
        if self.model_dim % self.num_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must divide model_dim ({self.model_dim})"
            )
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, got {self.kernel_size}")


class LogMels(nn.Module):
    """Log-mels as Kaldi takes them, each band of a recording freed of its mean and variance."""

    window: Tensor
    filters: Tensor

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        low, high = _mel(torch.tensor([20.0, SAMPLE_RATE / 2], dtype=torch.float64))
        edges = torch.linspace(low, high, num_mels + 2, dtype=torch.float64)
        bins = _mel(torch.arange(FFT_SIZE // 2 + 1).double() * SAMPLE_RATE / FFT_SIZE)[:, None]
        rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        filters = torch.minimum(rising, falling).clamp(min=0.0)
        window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64) ** 0.85
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", window, persistent=False)

    def spectra(self, samples: Tensor) -> Tensor:
        """Every whole window's log-mels, float [B, T] to float64 [B, (T - 400) // 160 + 1, mels].

        In float64, as energies of speech and of the silence beside it differ by ten orders.
        """
        frames = (samples.double() * 2**15).unfold(1, WINDOW, MEL_HOP)
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        frames = (frames - PREEMPHASIS * before) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames, n=FFT_SIZE)).square().sum(dim=-1)
        return (power @ self.filters).clamp(min=FLOOR).log()

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads of a padded batch.

        Args:
            waves: float32 [B, T]; zero beyond ``lengths``.
            lengths: int64 [B].

        Returns:
            float32 [B, F, 2 * mels], zero beyond; and frames of each, int64 [B].
        """
        frames = -(-lengths // FRAME)
        most = -(-waves.shape[1] // FRAME)
        padded = F.pad(waves, (MARGIN, most * FRAME - waves.shape[1] + MARGIN))
        mels = self.spectra(padded)
        real = (torch.arange(STACK * most, device=waves.device) < STACK * frames[:, None])[
            ..., None
        ]
        count = STACK * frames[:, None, None]
        mean = (mels * real).sum(dim=1, keepdim=True) / count
        centred = (mels - mean) * real
        variance = centred.square().sum(dim=1, keepdim=True) / (count - 1)
        normal = (centred / (variance + 1e-7).sqrt()).float()
        return rearrange(normal, "b (f s) m -> b f (s m)", s=STACK), frames


class Encoder(nn.Module):
    """Conformer layers over log-mels."""

    def __init__(self, shape: EncoderShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.feature_projection = nn.ModuleDict(
            {
                "layer_norm": nn.LayerNorm(STACK * shape.num_mels),
                "projection": nn.Linear(STACK * shape.num_mels, shape.model_dim),
            }
        )
        layers = [Layer(shape, dropout) for _ in range(shape.num_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.encoder["layers"]
        assert isinstance(layers, nn.ModuleList)
        return layers

    def project(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the first layer reads: float [B, F, 2 * mels] to [B, F, D]."""
        normal = self.feature_projection["layer_norm"](features)
        hidden: Tensor = self.feature_projection["projection"](normal)
        return hidden if mask is None else hidden * mask[..., None]

    def run(self, hidden: Tensor, first: int, last: int, mask: Tensor | None = None) -> Tensor:
        """Layers ``first`` up to, not including, ``last``.

        Args:
            hidden: float [B, F, D].
            mask: Which frames are real, bool [B, F]; all where there is none.

        Returns:
            float [B, F, D].
        """
        for layer in self.layers[first:last]:
            hidden = layer(hidden, mask)
        return hidden


class FeedForward(nn.Module):
    def __init__(self, shape: EncoderShape, dropout: float) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(shape.model_dim, shape.ffn_dim)
        self.output_dense = nn.Linear(shape.ffn_dim, shape.model_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.dropout(F.silu(self.intermediate_dense(hidden)))
        result: Tensor = self.dropout(self.output_dense(inner))
        return result


class Attention(nn.Module):
    """Attention whose scores hear how far apart two frames are, up to a limit."""

    def __init__(self, shape: EncoderShape, dropout: float) -> None:
        super().__init__()
        dim = shape.model_dim
        self.num_heads = shape.num_heads
        self.left, self.right = shape.left_distance, shape.right_distance
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.distance_embedding = nn.Embedding(self.left + 1 + self.right, dim // self.num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            rearrange(linear(hidden), "b f (h d) -> b h f d", h=self.num_heads)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        scores = query @ key.transpose(2, 3) + self._by_distance(query)
        scores = scores / math.sqrt(query.shape[3])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -math.inf)
        heard = self.dropout(scores.softmax(dim=-1)) @ value
        mixed = self.linear_out(rearrange(heard, "b h f d -> b f (h d)"))
        result: Tensor = self.dropout(mixed)
        return result

    def _by_distance(self, query: Tensor) -> Tensor:
        """Each query's score for how far away each key is, float [B, H, F, F]."""
        frames = query.shape[2]
        places = torch.arange(frames, device=query.device)
        distance = (places - places[:, None]).clamp(-self.left, self.right) + self.left
        scores: Tensor = query @ self.distance_embedding.weight.T
        return scores.gather(3, distance.expand(*scores.shape[:2], -1, -1))


class Convolution(nn.Module):
    def __init__(self, shape: EncoderShape, dropout: float) -> None:
        super().__init__()
        dim, kernel = shape.model_dim, shape.kernel_size
        self.layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.layer_norm(hidden)
        if mask is not None:
            hidden = hidden * mask[..., None]
        gated = F.glu(F.linear(hidden, self.pointwise_conv1.weight[..., 0]), dim=2)
        # Frames beyond a recording's end come later than all that counts: it sees no future.
        past = F.pad(gated.transpose(1, 2), (self.depthwise_conv.kernel_size[0] - 1, 0))
        mixed = self.depthwise_layer_norm(self.depthwise_conv(past).transpose(1, 2))
        return F.linear(F.silu(mixed), self.pointwise_conv2.weight[..., 0])


class Layer(nn.Module):
    """Half a feed-forward, attention, a convolution, and the other half."""

    def __init__(self, shape: EncoderShape, dropout: float) -> None:
        super().__init__()
        dim = shape.model_dim
        self.ffn1_layer_norm = nn.LayerNorm(dim)
        self.ffn1 = FeedForward(shape, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(shape, dropout)
        self.conv_module = Convolution(shape, dropout)
        self.ffn2_layer_norm = nn.LayerNorm(dim)
        self.ffn2 = FeedForward(shape, dropout)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = hidden + 0.5 * self.ffn1(self.ffn1_layer_norm(hidden))
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), mask)
        hidden = hidden + self.conv_module(hidden, mask)
        hidden = hidden + 0.5 * self.ffn2(self.ffn2_layer_norm(hidden))
        result: Tensor = self.final_layer_norm(hidden)
        return result


def read_encoder(model: str, dropout: float) -> Encoder:
    """Open a w2v-BERT 2.0, or an encoder that :func:`write_encoder` wrote.

    Args:
        model: A folder that transformers saved, or a hub id.
        dropout: For training.

    Raises:
        CheckpointError: Missing, partial, or of another architecture.
    """
    folder = open_folder(model, "facebook/w2v-bert-2.0")
    values = read_shape(folder)
    path = folder / CONFIG_NAME
    for key, expected in {
        "model_type": "wav2vec2-bert",
        "hidden_act": "swish",
        "position_embeddings_type": "relative_key",
    }.items():
        if (found := values.get(key, expected if key != "model_type" else None)) != expected:
            raise CheckpointError(
                f"{path}: expected {key} {expected!r}, got {found!r}; give a w2v-BERT 2.0"
            )
    sizes = {
        "num_layers": "num_hidden_layers",
        "model_dim": "hidden_size",
        "num_heads": "num_attention_heads",
        "ffn_dim": "intermediate_size",
        "kernel_size": "conv_depthwise_kernel_size",
        "left_distance": "left_max_position_embeddings",
        "right_distance": "right_max_position_embeddings",
    }
    # What transformers leaves out of config.json is as in w2v-BERT 2.0.
    given = {name: values[key] for name, key in sizes.items() if key in values}
    width = values.get("feature_projection_input_dim", STACK * 80)
    given["num_mels"] = width // STACK if isinstance(width, int) else width
    try:
        shape = build(EncoderShape, {**PUBLISHED, **given})
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    with torch.device("meta"):
        encoder = Encoder(shape, dropout)
    weights = read_tensors(
        folder, encoder.state_dict(), lambda name: name.removeprefix("wav2vec2_bert.")
    )
    encoder.load_state_dict(weights, assign=True)
    return encoder


def write_encoder(folder: Path, shape: EncoderShape, tensors: Mapping[str, Tensor]) -> None:
    """Write what ``Wav2Vec2BertModel.from_pretrained(folder)`` opens, whole or not at all.

    Args:
        folder: Replaced where it is there.
        shape: The encoder's.
        tensors: Its weights.
    """
    config: dict[str, Any] = {
        "architectures": ["Wav2Vec2BertModel"],
        "model_type": "wav2vec2-bert",
        "feature_projection_input_dim": STACK * shape.num_mels,
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.model_dim,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.ffn_dim,
        "hidden_act": "swish",
        "conv_depthwise_kernel_size": shape.kernel_size,
        "position_embeddings_type": "relative_key",
        "left_max_position_embeddings": shape.left_distance,
        "right_max_position_embeddings": shape.right_distance,
        "layer_norm_eps": 1e-5,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "add_adapter": False,
    }
    extractor: dict[str, Any] = {
        "feature_extractor_type": "SeamlessM4TFeatureExtractor",
        "feature_size": shape.num_mels,
        "num_mel_bins": shape.num_mels,
        "sampling_rate": SAMPLE_RATE,
        "stride": STACK,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    with write_folder_aside(folder) as aside:
        write_json(aside / CONFIG_NAME, config)
        write_json(aside / "preprocessor_config.json", extractor)
        weights = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)
