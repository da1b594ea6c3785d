"""The network of ``unit-flow``: from noise to a chunk of log-mels, told units and what came before.

It sees a window of frames at once: ``context`` frames of mels that are there already, the
``block`` frames that are asked for, still noisy, and ``lookahead`` frames of which it knows the
units only. Within the window everything sees everything; beyond it nothing is seen, so a stream
that goes from window to window gives what the whole gives. What came before may as well be a
recording: a prompt whose voice goes on.

It is trained to say in which direction from noise the mels lie (optimal-transport flow matching);
some steps that way make mels of noise.

Source:
    Lipman et al. 2022 (flow matching), arXiv:2210.02747; Ho and Salimans 2022 (classifier-free
    guidance), arXiv:2207.12598; Du et al. 2024 (CosyVoice, for units), arXiv:2407.05407.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.settings import at_least

ABSENT, KNOWN, NOISY, AHEAD = range(4)
"""What a frame of the window is."""
TIME_SCALE = 1000.0
"""Of the waves that say how far noise has become mels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowConfig:
    """The sizes of a :class:`FlowModel`."""

    codebook_sizes: tuple[int, ...]
    """Units of each codebook."""
    num_mels: int
    hop_length: int
    """Samples a unit."""
    mel_hop: int
    """Samples a frame of mels."""
    context: int
    """Units of which the mels are there already."""
    block: int
    """Units of which mels are made at once."""
    lookahead: int
    """Units known beyond those."""
    dim: int
    num_layers: int
    num_heads: int
    ffn_factor: int
    """Width of a layer's inner part, in ``dim``."""
    kernel: int
    """Frames of mels that a layer's convolution sees."""
    speaker_dim: int
    """Length of the embeddings of voices; 0 for a vocoder of one voice."""

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads", "ffn_factor", "kernel", "block", "context"):
            at_least(1, name, getattr(self, name))
        for name in ("lookahead", "speaker_dim"):
            at_least(0, name, getattr(self, name))
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ConfigError(f"expected codebooks with units, got {list(self.codebook_sizes)}")
        if self.dim % (2 * self.num_heads) or self.kernel % 2 == 0:
            raise ConfigError(
                f"dim ({self.dim}) must be a multiple of twice num_heads ({self.num_heads}), and "
                f"kernel ({self.kernel}) odd"
            )
        for name in ("context", "block", "lookahead"):
            if getattr(self, name) % self.granularity:
                raise ConfigError(
                    f"{name} must be a multiple of {self.granularity}, as only so many units of "
                    f"{self.hop_length} samples are whole frames of {self.mel_hop}, got "
                    f"{getattr(self, name)}"
                )

    @property
    def granularity(self) -> int:
        """The least number of units that are a whole number of frames of mels."""
        return self.mel_hop // math.gcd(self.hop_length, self.mel_hop)

    def frames(self, units: int) -> int:
        """Frames of mels that so many units are, the last one begun if not whole."""
        return -(-units * self.hop_length // self.mel_hop)


class FlowModel(nn.Module):
    """Says in which direction the mels lie."""

    unit_of_frame: Tensor
    kinds: Tensor
    mean: Tensor
    """Of each band over speech, float32 [num_mels]; mels are scaled by these."""
    deviation: Tensor
    mean_speaker: Tensor
    """The voice where none is asked for, float32 [speaker_dim]."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        sizes = [config.frames(each) for each in (config.context, config.block, config.lookahead)]
        self.context_frames, self.block_frames, self.ahead_frames = sizes
        frames = torch.arange(sum(sizes))
        places = frames * config.mel_hop // config.hop_length
        self.register_buffer("unit_of_frame", places, persistent=False)
        kinds = torch.tensor([KNOWN, NOISY, AHEAD]).repeat_interleave(torch.tensor(sizes))
        self.register_buffer("kinds", kinds, persistent=False)
        self.register_buffer("mean", torch.zeros(config.num_mels))
        self.register_buffer("deviation", torch.ones(config.num_mels))
        self.register_buffer("mean_speaker", torch.zeros(config.speaker_dim))
        # One row more than units: what stands before the first one and after the last.
        self.embeddings = nn.ModuleList(
            nn.Embedding(size + 1, dim) for size in config.codebook_sizes
        )
        self.unit_norm = nn.LayerNorm(dim)
        self.speaker = nn.Linear(config.speaker_dim, dim) if config.speaker_dim else None
        self.mels = nn.Linear(config.num_mels, dim)
        self.kind = nn.Embedding(4, dim)
        self.position = nn.Embedding(len(frames), dim)
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.layers = nn.ModuleList(FlowLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.num_mels)
        with torch.no_grad():
            for rows in self.embeddings.parameters():
                nn.init.normal_(rows, std=len(self.embeddings) ** -0.5)
            for table in (self.kind, self.position):
                nn.init.normal_(table.weight, std=0.3)
            self.head.weight.zero_()

    def scaled(self, mels: Tensor) -> Tensor:
        """Log-mels, float32 [..., num_mels], to about mean 0 and deviation 1."""
        return (mels - self.mean) / self.deviation

    def unscaled(self, mels: Tensor) -> Tensor:
        """Undo :meth:`scaled`."""
        return mels * self.deviation + self.mean

    def forward(
        self,
        noisy: Tensor,
        time: Tensor,
        known: Tensor,
        absent: Tensor,
        codes: Tensor,
        speaker: Tensor | None,
        untold: Tensor,
    ) -> Tensor:
        """Give the direction from noise to mels.

        Args:
            noisy: Scaled mels on their way, float32 [B, N, num_mels], N frames of ``block``.
            time: How far on their way, 0 to 1, float32 [B].
            known: Scaled mels before those, float32 [B, C, num_mels].
            absent: Which of these are not there, bool [B, C].
            codes: Units of the window, int64 [B, K, context + block + lookahead]; -1 where
                nothing is said.
            speaker: Embeddings of the voices, float32 [B, D]; None where there is one voice.
            untold: Rows that are to go without units, voice and context, bool [B].

        Returns:
            float32 [B, N, num_mels].
        """
        absent = absent | untold[:, None]
        told = ~untold[:, None]
        condition = self.unit_norm(self._embed(codes))
        if self.speaker is not None:
            condition = condition + self.speaker(speaker)[:, None]
        condition = (condition * told[..., None])[:, self.unit_of_frame]
        mels = self.mels(torch.cat([known * ~absent[..., None], noisy], dim=1))
        kinds = self.kinds.repeat(len(noisy), 1)
        kinds[:, : self.context_frames][absent] = ABSENT
        hidden = condition + self.kind(kinds) + self.position.weight
        hidden = hidden + F.pad(mels, (0, 0, 0, self.ahead_frames))
        told_time = self.time(_waves(time, self.config.dim))
        for layer in self.layers:
            hidden = layer(hidden, told_time)
        start = self.context_frames
        result: Tensor = self.head(self.norm(hidden[:, start : start + self.block_frames]))
        return result.float()

    def _embed(self, codes: Tensor) -> Tensor:
        rows = [
            embedding(torch.where(row < 0, size, row))
            for row, size, embedding in zip(
                codes.unbind(1), self.config.codebook_sizes, self.embeddings, strict=True
            )
        ]
        return torch.stack(rows).sum(dim=0)


class FlowLayer(nn.Module):
    """Convolution, attention and a feed-forward part, the last two as the time wants them."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.near_norm = nn.LayerNorm(dim)
        self.near = nn.Conv1d(dim, dim, config.kernel, padding=config.kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.time = nn.Linear(dim, 4 * dim)
        self.projections = nn.Linear(dim, 3 * dim)
        self.attended = nn.Linear(dim, dim)
        self.inner = nn.Linear(dim, config.ffn_factor * dim)
        self.outer = nn.Linear(config.ffn_factor * dim, dim)
        with torch.no_grad():
            for layer in (self.attended, self.outer):
                layer.weight.mul_(1 / config.num_layers)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """float32 [B, W, D] at ``time`` [B, D] to the same shape."""
        scale, shift, scale_inner, shift_inner = self.time(time)[:, None].chunk(4, dim=2)
        hidden = hidden + F.gelu(self.near(self.near_norm(hidden).mT)).mT
        normed = self.norm(hidden) * (1 + scale) + shift
        query, key, value = rearrange(
            self.projections(normed), "b w (three h d) -> three b h w d", three=3, h=self.num_heads
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        hidden = hidden + self.attended(rearrange(attended, "b h w d -> b w (h d)"))
        normed = self.norm(hidden) * (1 + scale_inner) + shift_inner
        result: Tensor = hidden + self.outer(F.gelu(self.inner(normed)))
        return result


def _waves(time: Tensor, dim: int) -> Tensor:
    """Sines and cosines of times, float32 [B] to [B, dim]."""
    rates = torch.exp(torch.linspace(0, -math.log(1e4), dim // 2, device=time.device))
    angles = TIME_SCALE * time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def flow_times(steps: int) -> Tensor:
    """Where the steps from noise to mels begin, and 1: closer together where they turn most.

    Returns:
        float32 [steps + 1], by a cosine.
    """
    return 1 - torch.cos(0.5 * math.pi * torch.linspace(0, 1, steps + 1))


def flow(
    model: FlowModel,
    noise: Tensor,
    known: Tensor,
    absent: Tensor,
    codes: Tensor,
    speaker: Tensor | None,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """Make mels of noise, by Euler's method.

    Args:
        model: The network.
        noise: Drawn from a normal distribution, float32 [1, N, num_mels].
        known: Scaled mels that came before, float32 [1, C, num_mels].
        absent: Which of these are not there, bool [1, C].
        codes: Units of the window, int64 [1, K, context + block + lookahead].
        speaker: The voice, float32 [1, D]; None where there is but one.
        steps: How many.
        guidance: How much further to go in the direction in which what is told leads away from
            what would be said untold; 0 computes half as much.

    Returns:
        Scaled mels, float32 [1, N, num_mels].
    """
    rows = 2 if guidance else 1
    untold = torch.tensor([False, True][:rows], device=noise.device)
    voice = None if speaker is None else speaker.expand(rows, -1)
    window = (known.expand(rows, -1, -1), absent.expand(rows, -1), codes.expand(rows, -1, -1))
    mels = noise
    times = flow_times(steps).to(noise.device)
    for now, then in pairwise(times):
        directions = model(mels.expand(rows, -1, -1), now.expand(rows), *window, voice, untold)
        direction = directions[:1]
        if guidance:
            direction = direction + guidance * (direction - directions[1:])
        mels = mels + (then - now) * direction
    return mels
