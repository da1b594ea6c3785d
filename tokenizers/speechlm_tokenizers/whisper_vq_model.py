"""Whisper's encoder up to a codebook: GLM-4-Voice's tokenizer, and what others made of its kind.

Log-mels, two convolutions, some of Whisper's layers, the mean of every four frames, the nearest
vector of a codebook. In the published one convolutions see no future and attention sees none
beyond its block of four seconds; with the flags that say so off it is Whisper as it was.

Tensors have the names that the published checkpoints give them, ``model.encoder.`` left out.

Sources:
    Radford et al. 2022 (Whisper), arXiv:2212.04356; Zeng et al. 2024 (GLM-4-Voice),
    arXiv:2412.02612.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchaudio.functional
from einops import rearrange
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.settings import at_least, build

SAMPLE_RATE = 16_000
MEL_HOP = 160
WINDOW = 400
MARGIN = WINDOW // 2
"""Samples on either side of a spectrum's centre that it sees."""
FRAME = 2 * MEL_HOP
"""Samples a frame of the layers, of which there are 50 a second."""
FLOOR = 1e-10
RANGE = 8.0
"""Decades below the loudest band that are told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperShape:
    """An encoder's sizes and how far each part of it sees."""

    num_mels: int = 128
    model_dim: int = 1280
    num_heads: int = 20
    ffn_dim: int = 5120
    num_layers: int = 16
    """Layers below the codebook; those above are not kept."""
    max_frames: int = 1500
    """Frames of a window, before pooling: 30 s."""
    causal_convolution: bool = True
    attention: Literal["full", "block", "causal"] = "block"
    """Whether a frame hears the whole window, nothing beyond its block, or no future at all."""
    block: int = 200
    """Frames of a block."""
    pooling: int = 4
    """Frames that become one."""
    pooling_type: Literal["avg", "max"] = "avg"
    pooling_layer: int = 16
    """Layers below the pooling."""
    num_units: int = 16_384

    def __post_init__(self) -> None:
        for name in ("num_mels", "num_heads", "ffn_dim", "num_layers", "max_frames", "block"):
            at_least(1, name, getattr(self, name))
        at_least(1, "pooling", self.pooling)
        at_least(2, "num_units", self.num_units)
        if self.model_dim < 1 or self.model_dim % self.num_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must divide model_dim ({self.model_dim})"
            )
        if not 1 <= self.pooling_layer <= self.num_layers:
            raise ConfigError(
                f"pooling_layer ({self.pooling_layer}) must be within 1..num_layers "
                f"({self.num_layers})"
            )
        if self.max_frames % self.pooling or self.block % self.pooling:
            raise ConfigError(
                f"pooling ({self.pooling}) must divide max_frames ({self.max_frames}) and block "
                f"({self.block})"
            )

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any]) -> WhisperShape:
        """Read the ``config.json`` of a checkpoint with a codebook, a ``WhisperVQConfig``.

        Raises:
            ConfigError: It has no codebook, or is not of a kind known here.
        """
        if config.get("quantize_vocab_size") is None:
            raise ConfigError(
                "it names no quantize_vocab_size: a Whisper without a codebook gives no units; "
                "train one from it by 'speechlm train train.part=tokenizer'"
            )
        block = config.get("quantize_causal_block_size")
        attention = "full" if block is None else "block"
        if config.get("encoder_causal_attention") or config.get("quantize_causal_encoder"):
            attention = "causal"
        pooling = config.get("pooling_kernel_size") or 1
        position = config.get("quantize_position", 16)
        values = {
            **whisper_sizes(config),
            "num_layers": position,
            "causal_convolution": config.get("encoder_causal_convolution", False),
            "attention": attention,
            "block": pooling if block is None else block,
            "pooling": pooling,
            "pooling_type": config.get("pooling_type", "max"),
            "pooling_layer": config.get("pooling_position", 0) if pooling > 1 else position,
            "num_units": config["quantize_vocab_size"],
        }
        return build(cls, values)


class WhisperMels(nn.Module):
    """Whisper's log-mels."""

    window: Tensor
    filters: Tensor

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        filters = torchaudio.functional.melscale_fbanks(
            MARGIN + 1, 0.0, 8000.0, num_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def spectra(self, samples: Tensor) -> Tensor:
        """Every whole window's log-mels, float32 [..., T] to [..., mels, (T - 400) // 160 + 1]."""
        frames = samples.unfold(-1, WINDOW, MEL_HOP) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1)
        return (power @ self.filters).clamp(min=FLOOR).log10().transpose(-1, -2)

    def compress(self, spectra: Tensor, loudest: Tensor) -> Tensor:
        """Bring log-mels into Whisper's range, where the loudest band of all was ``loudest``."""
        return (torch.maximum(spectra, loudest - RANGE) + 4.0) / 4.0


@dataclass(kw_only=True, slots=True, eq=False)
class Past:
    """What an encoder remembers of the window that it is reading."""

    frames: int = 0
    """Read so far."""
    mels: Tensor | None = None
    """The last two that the first convolution saw, [B, mels, 2]."""
    inner: Tensor | None = None
    """The last two that the second saw, [B, D, 2]."""
    heard: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of each layer, [B, H, F, D / H], and which of them are real, bool [B, F]."""


class WhisperEncoder(nn.Module):
    """Log-mels to the vectors that a codebook quantizes."""

    def __init__(self, shape: WhisperShape) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.model_dim
        padding = 0 if shape.causal_convolution else 1
        self.conv1 = nn.Conv1d(shape.num_mels, dim, 3, padding=padding)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=padding)
        self.embed_positions = nn.Embedding(shape.max_frames, dim)
        self.layers = nn.ModuleList(
            WhisperLayer(dim, shape.num_heads, shape.ffn_dim) for _ in range(shape.num_layers)
        )

    def forward(self, mels: Tensor, real: Tensor, past: Past) -> Tensor:
        """Read the next stretch of a window.

        Args:
            mels: float32 [B, mels, 2 * F]; F a multiple of ``pooling``, and of ``block`` where
                attention is in blocks and the window goes on.
            real: Which frames are of the recording and no padding, bool [B, F].
            past: The window's; changed here. A whole window begins with an empty one.

        Returns:
            float32 [B, F / pooling, D].
        """
        hidden = self._convolve(mels, past)
        size = self.shape.block if self.shape.attention == "block" else hidden.shape[1]
        pieces = zip(torch.split(hidden, size, dim=1), torch.split(real, size, dim=1), strict=True)
        return torch.cat([self._attend(piece, mask, past) for piece, mask in pieces], dim=1)

    def _convolve(self, mels: Tensor, past: Past) -> Tensor:
        if self.shape.causal_convolution:
            before = mels.new_zeros(*mels.shape[:2], 2) if past.mels is None else past.mels
            past.mels = mels[..., -2:]
            mels = torch.cat([before, mels], dim=2)
        inner = F.gelu(self.conv1(mels))
        if self.shape.causal_convolution:
            before = inner.new_zeros(*inner.shape[:2], 2) if past.inner is None else past.inner
            past.inner = inner[..., -2:]
            inner = torch.cat([before, inner], dim=2)
        hidden = F.gelu(self.conv2(inner)).transpose(1, 2)
        frames = hidden.shape[1]
        positions = self.embed_positions.weight[past.frames : past.frames + frames]
        past.frames += frames
        return hidden + positions

    def _attend(self, hidden: Tensor, real: Tensor, past: Past) -> Tensor:
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, real, past.heard, index, causal=self.shape.attention == "causal")
            if index + 1 == self.shape.pooling_layer and self.shape.pooling > 1:
                hidden, real = self._pool(hidden), real[:, :: self.shape.pooling]
        return hidden

    def _pool(self, hidden: Tensor) -> Tensor:
        grouped = rearrange(hidden, "b (f p) d -> b f p d", p=self.shape.pooling)
        if self.shape.pooling_type == "avg":
            return grouped.mean(dim=2)
        return grouped.amax(dim=2)


class WhisperLayer(nn.Module):
    """Attention and a feed-forward module, each after its norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = WhisperAttention(dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        hidden: Tensor,
        real: Tensor,
        heard: dict[int, tuple[Tensor, Tensor, Tensor]] | None = None,
        index: int = 0,
        *,
        causal: bool = False,
    ) -> Tensor:
        """float [B, F, D] to [B, F, D]; ``heard[index]`` holds what came before, where kept."""
        normal = self.self_attn_layer_norm(hidden)
        hidden = hidden + self.self_attn(normal, real, heard, index, causal)
        result: Tensor = hidden + self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden))))
        return result


class WhisperAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden: Tensor,
        real: Tensor,
        heard: dict[int, tuple[Tensor, Tensor, Tensor]] | None,
        index: int,
        causal: bool,
    ) -> Tensor:
        query, key, value = (
            rearrange(linear(hidden), "b f (h d) -> b h f d", h=self.num_heads)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        if heard is not None:
            if index in heard:
                before = heard[index]
                key, value = (
                    torch.cat(both, dim=2) for both in zip(before[:2], (key, value), strict=True)
                )
                real = torch.cat([before[2], real], dim=1)
            heard[index] = key, value, real
        if causal:
            result = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            mask = None if bool(real.all()) else real[:, None, None]
            result = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed: Tensor = self.out_proj(rearrange(result, "b h f d -> b f (h d)"))
        return mixed


def encoder_name(name: str) -> str:
    """The encoder's name of a tensor in a checkpoint of a whole model, or of its encoder."""
    for prefix in ("model.encoder.", "encoder."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def whisper_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says of any Whisper, by the names of :class:`WhisperShape`.

    Raises:
        ConfigError: It is no Whisper's, or not of a kind known here.
    """
    known = {
        "num_mels": "num_mel_bins",
        "model_dim": "d_model",
        "num_heads": "encoder_attention_heads",
        "ffn_dim": "encoder_ffn_dim",
        "num_layers": "encoder_layers",
        "max_frames": "max_source_positions",
    }
    for key in known.values():
        if not isinstance(value := config.get(key), int) or value < 1:
            raise ConfigError(f"expected the configuration of a Whisper, got {key} {value!r}")
    if (activation := config.get("activation_function", "gelu")) != "gelu":
        raise ConfigError(f"expected the activation_function 'gelu', got {activation!r}")
    return {name: config[key] for name, key in known.items()}
