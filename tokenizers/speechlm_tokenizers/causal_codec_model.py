"""The network of ``causal-codec``: spectra in, a few codes a frame, spectra out.

    samples -> log-mels, those of one frame of units stacked -> causal ConvNeXt blocks
            -> residual quantizer -> causal ConvNeXt blocks
            -> magnitudes and phases, several a frame -> inverse transforms that overlap -> samples

Nothing runs at the rate of samples and all layers run at that of the units, which is what lets
it be trained on two CPU cores. Every layer is causal and takes an explicit state, so a stream
computes in blocks what the whole does. The decoder alone waits, ``lookahead`` frames, for the
windows that reach over a frame's end.

Source:
    Siuzdak 2023 (Vocos: ConvNeXt blocks and an inverse transform), arXiv:2306.00814;
    Défossez et al. 2022 (EnCodec: a causal codec), arXiv:2210.13438; Défossez et al. 2024
    (Mimi: the first codebook beside the others), arXiv:2410.00037.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.settings import at_least
from speechlm.streaming import State
from speechlm_tokenizers.quantizers import Quantized, ResidualFSQ, ResidualVQ, add_up

LEAST_MAGNITUDE = 1e-4
"""What quieter bands are heard as."""
LARGEST_LOG = 6.0
"""Of a magnitude: what one bad step of training makes must stay finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalCodecConfig:
    """What a ``causal-codec`` is; the defaults train on two CPU cores within half an hour."""

    sample_rate: int = 16_000
    """Hz."""
    hop_length: int = 320
    """Samples a frame of units."""
    spectral_hop: int = 160
    """Samples from one spectrum to the next; divides ``hop_length``."""
    analysis_window: int = 512
    """Samples that a spectrum of the encoder sees; it ends with its hop."""
    synthesis_window: int = 640
    """Samples that a spectrum of the decoder sounds; a multiple of ``spectral_hop``."""
    num_mels: int = 80
    """Mel bands of the encoder's spectra."""
    dim: int = 256
    """Width of the layers."""
    encoder_blocks: int = 4
    decoder_blocks: int = 6
    kernel_size: int = 7
    """Frames that the convolution of a block sees."""
    expansion: int = 3
    """Width of a block's inner layer, in ``dim``."""
    quantizer: Literal["rvq", "fsq"] = "rvq"
    """``rvq``: codebooks that follow the vectors. ``fsq``: a few rounded numbers a level."""
    num_codebooks: int = 8
    """Levels of the quantizer: units a frame."""
    vocab_size: int = 256
    """Units a codebook."""
    fsq_values: tuple[int, ...] = (4, 4, 4, 4)
    """Values that each number of a level may take where the quantizer is ``fsq``; their product
    is ``vocab_size``."""
    code_dim: int = 64
    """Length of the vectors that are quantized."""
    semantic: Literal["none", "residual", "split"] = "none"
    """How the first codebook learns from a teacher. ``residual``: it is the quantizer's first
    level, as in SpeechTokenizer. ``split``: it stands beside the others, as in Mimi."""
    lookahead: int = 1
    """Frames of units that the decoder waits for."""
    block_frames: int = 4
    """Frames computed at once by streams: more are faster, fewer come sooner."""

    def __post_init__(self) -> None:
        for name in (
            *("sample_rate", "hop_length", "num_mels", "dim", "encoder_blocks"),
            *("decoder_blocks", "kernel_size", "expansion", "num_codebooks", "code_dim"),
            "block_frames",
        ):
            at_least(1, name, getattr(self, name))
        at_least(2, "vocab_size", self.vocab_size)
        at_least(0, "lookahead", self.lookahead)
        if self.spectral_hop < 1 or self.hop_length % self.spectral_hop:
            raise ConfigError(
                f"spectral_hop must divide hop_length ({self.hop_length}), got {self.spectral_hop}"
            )
        if self.analysis_window < self.spectral_hop:
            raise ConfigError(
                f"analysis_window must be at least spectral_hop ({self.spectral_hop}), "
                f"got {self.analysis_window}"
            )
        if (
            self.synthesis_window % self.spectral_hop
            or self.synthesis_window < 3 * self.spectral_hop
        ):
            raise ConfigError(
                f"synthesis_window must be at least 3 times spectral_hop ({self.spectral_hop}) "
                f"and a multiple of it, got {self.synthesis_window}"
            )
        if self.quantizer == "fsq" and (
            min(self.fsq_values, default=0) < 2 or math.prod(self.fsq_values) != self.vocab_size
        ):
            raise ConfigError(
                "fsq_values must be numbers from 2 on whose product is vocab_size "
                f"({self.vocab_size}), got {list(self.fsq_values)}"
            )

    @property
    def spectra(self) -> int:
        """Spectra a frame of units."""
        return self.hop_length // self.spectral_hop

    @property
    def levels(self) -> tuple[int, ...]:
        """Codebooks of each quantizer."""
        if self.semantic == "split" and self.num_codebooks > 1:
            return 1, self.num_codebooks - 1
        return (self.num_codebooks,)


class CausalCodecModel(nn.Module):
    """Encoder, quantizers and decoder."""

    def __init__(self, config: CausalCodecConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quantizers = Quantizers(config)
        self.decoder = Decoder(config)


class Encoder(nn.Module):
    """Samples to one vector a frame of units."""

    window: Tensor
    """float32 [analysis_window]."""
    filters: Tensor
    """Triangles over the bins of a spectrum, float32 [bins, mels]."""

    def __init__(self, config: CausalCodecConfig) -> None:
        super().__init__()
        self._hop, self._spectra = config.spectral_hop, config.spectra
        bins = config.analysis_window // 2 + 1
        # Kept with the weights: computed elsewhere they might differ in a last bit.
        self.register_buffer("window", torch.hann_window(config.analysis_window))
        self.register_buffer("filters", mel_filters(config.sample_rate, bins, config.num_mels))
        self.enter = nn.Linear(config.spectra * config.num_mels, config.dim)
        self.blocks = _blocks(config.encoder_blocks, config)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, waves: Tensor, state: State | None = None) -> Tensor:
        """Hear the next stretch of recordings.

        Args:
            waves: float32 [B, F * hop_length].
            state: The stream's; None where that is all.

        Returns:
            float [B, F, dim].
        """
        mels = self._log_mels(remember(self, waves[..., None], len(self.window) - self._hop, state))
        hidden = self.enter(rearrange(mels, "b (f s) m -> b f (s m)", s=self._spectra))
        for block in self.blocks:
            hidden = block(hidden, state)
        result: Tensor = self.norm(hidden)
        return result

    def _log_mels(self, waves: Tensor) -> Tensor:
        """float32 [B, T, 1] to [B, N, mels], about within -1..1."""
        # In half precision spectra of quiet sound vanish.
        with torch.autocast(waves.device.type, enabled=False):
            frames = waves[..., 0].float().unfold(1, len(self.window), self._hop)
            mels = torch.fft.rfft(frames * self.window).abs() @ self.filters
            found: Tensor = mels.clamp(min=LEAST_MAGNITUDE).log() / 4 + 1
            return found


class Quantizers(nn.Module):
    """Vectors to codes and back: one quantizer, or a semantic one beside one for all the rest."""

    def __init__(self, config: CausalCodecConfig) -> None:
        super().__init__()
        self.levels = config.levels
        self.down = nn.ModuleList(nn.Linear(config.dim, config.code_dim) for _ in self.levels)
        self.up = nn.ModuleList(nn.Linear(config.code_dim, config.dim) for _ in self.levels)
        self._parts = nn.ModuleList(_quantizer(levels, config) for levels in self.levels)

    @property
    def parts(self) -> Sequence[ResidualVQ | ResidualFSQ]:
        """The quantizers themselves, the semantic one first."""
        return cast("Sequence[ResidualVQ | ResidualFSQ]", self._parts)

    def encode(self, hidden: Tensor) -> Tensor:
        """Code float32 [F, dim] as int64 [K, F]."""
        codes = [
            part.encode(down(hidden)) for part, down in zip(self.parts, self.down, strict=True)
        ]
        return torch.cat(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """What int64 [K, F] stands for, float32 [F, dim]."""
        rows = torch.split(codes, list(self.levels))
        return add_up(
            [
                up(part.decode(some))
                for part, up, some in zip(self.parts, self.up, rows, strict=True)
            ]
        )

    def project(self, hidden: Tensor) -> list[Tensor]:
        """What each quantizer gets of float [B, F, dim], float32 [B, F, code_dim] each."""
        return [down(hidden).float() for down in self.down]

    def quantize(self, vectors: Sequence[Tensor], used: Tensor) -> list[Quantized]:
        """Quantize in training what :meth:`project` gave.

        Args:
            vectors: float32 [B, F, code_dim] each.
            used: How many codebooks each row uses, int64 [B].
        """
        done: list[Quantized] = []
        for part, some, before in zip(self.parts, vectors, self._before(), strict=True):
            done.append(part(some, used - before))
        return done

    def merge(self, vectors: Sequence[Tensor], used: Tensor) -> Tensor:
        """What the decoder gets, float [B, F, dim], of what the quantizers gave."""
        results = []
        for up, some, before in zip(self.up, vectors, self._before(), strict=True):
            # A quantizer none of whose levels is used says nothing, and nor does its bias.
            results.append((used > before).to(some)[:, None, None] * up(some))
        return add_up(results)

    def _before(self) -> list[int]:
        """How many codebooks stand before each quantizer's."""
        return [sum(self.levels[:place]) for place in range(len(self.levels))]


class Decoder(nn.Module):
    """One vector a frame of units to samples, ``lookahead`` frames late."""

    window: Tensor
    """float32 [synthesis_window]."""

    def __init__(self, config: CausalCodecConfig) -> None:
        super().__init__()
        self._hop, self._spectra = config.spectral_hop, config.spectra
        window = torch.hann_window(config.synthesis_window)
        # Scaled so that windows over a wave's own spectra add up to the wave.
        self.register_buffer("window", window * (config.spectral_hop / window.square().sum()))
        self.blocks = _blocks(config.decoder_blocks, config)
        self.norm = nn.LayerNorm(config.dim)
        self.leave = nn.Linear(config.dim, config.spectra * (config.synthesis_window + 2))

    def forward(self, hidden: Tensor, state: State | None = None) -> Tensor:
        """Sound float [B, F, dim] as float32 [B, F * hop_length]."""
        for block in self.blocks:
            hidden = block(hidden, state)
        spectra = rearrange(
            self.leave(self.norm(hidden)),
            "b f (s part n) -> part b (f s) n",
            part=2,
            s=self._spectra,
        ).float()
        with torch.autocast(hidden.device.type, enabled=False):
            spectrum = torch.polar(spectra[0].clamp(max=LARGEST_LOG).exp(), spectra[1])
            frames = torch.fft.irfft(spectrum, n=len(self.window)) * self.window
        return self._overlap_add(frames, state)

    def _overlap_add(self, frames: Tensor, state: State | None) -> Tensor:
        """Add up windows float32 [B, N, size] that begin a hop apart, [B, N * hop]."""
        count, overlap = frames.shape[1], frames.shape[2] // self._hop
        pieces = rearrange(frames, "b n (o t) -> o b n t", t=self._hop)
        total = add_up(
            [F.pad(piece, (0, 0, place, overlap - 1 - place)) for place, piece in enumerate(pieces)]
        )
        if state is not None:
            if (past := state.get(self)) is not None:
                total = total + F.pad(past, (0, 0, 0, count))
            state[self] = total[:, count:]
        return total[:, :count].flatten(1)


class Block(nn.Module):
    """ConvNeXt, causal: a convolution of each channel alone, then two layers over all of them.

    Source:
        Liu et al. 2022, arXiv:2201.03545.
    """

    def __init__(self, config: CausalCodecConfig, scale: float) -> None:
        super().__init__()
        dim, kernel = config.dim, config.kernel_size
        self.kernel = nn.Parameter(torch.randn(kernel, dim) * kernel**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, config.expansion * dim)
        self.outer = nn.Linear(config.expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, hidden: Tensor, state: State | None) -> Tensor:
        """float [B, F, dim] to the same shape."""
        count, reach = hidden.shape[1], len(self.kernel) - 1
        seen = remember(self, hidden, reach, state)
        # For the few frames of a block this is faster than a convolution with groups.
        mixed = seen[:, :count] * self.kernel[0]
        for place in range(1, reach + 1):
            mixed = torch.addcmul(mixed, seen[:, place : place + count], self.kernel[place])
        update: Tensor = self.outer(F.gelu(self.inner(self.norm(mixed)))) * self.scale
        return hidden + update


def remember(layer: nn.Module, input: Tensor, reach: int, state: State | None) -> Tensor:
    """Put what came before in front of an input: ``reach`` elements, zeros at the beginning.

    Args:
        layer: Whose memory it is.
        input: [B, N, C].
        reach: How much of the past the layer sees.
        state: The stream's, which then remembers this input; None where it is all there is.

    Returns:
        [B, reach + N, C].
    """
    past = None if state is None else state.get(layer)
    if past is None:
        past = input.new_zeros(input.shape[0], reach, input.shape[2])
    seen = torch.cat([past, input], dim=1)
    if state is not None:
        # A copy: a view would keep all of the block.
        state[layer] = seen[:, seen.shape[1] - reach :].clone()
    return seen


def mel_filters(sample_rate: int, bins: int, num_mels: int) -> Tensor:
    """Triangles evenly spaced in mel from 0 to half the rate, each a mean, float32 [bins, mels].

    None is narrower than three bins, so that none is empty however many there are.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, num_mels + 2, dtype=torch.float64) / 2595) - 1)
    low, middle, high = (edges * (2 * (bins - 1) / sample_rate)).unfold(0, 3, 1).T
    places = torch.arange(bins, dtype=torch.float64)[:, None] - middle
    rising = 1 + places / (middle - low).clamp(min=1.5)
    falling = 1 - places / (high - middle).clamp(min=1.5)
    filters = torch.minimum(rising, falling).clamp(min=0)
    return (filters / filters.sum(dim=0)).float()


def _blocks(count: int, config: CausalCodecConfig) -> nn.ModuleList:
    return nn.ModuleList(Block(config, 1 / count) for _ in range(count))


def _quantizer(levels: int, config: CausalCodecConfig) -> ResidualVQ | ResidualFSQ:
    if config.quantizer == "fsq":
        return ResidualFSQ(levels, config.fsq_values, config.code_dim)
    return ResidualVQ(levels, config.vocab_size, config.code_dim)
