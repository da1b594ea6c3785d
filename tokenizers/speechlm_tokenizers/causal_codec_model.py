"""The network of ``causal-codec``: log-mels in, a few codes a frame, a filtered pulse train out.

    samples -> log-mels, those of one frame of units stacked -> causal ConvNeXt blocks
            -> residual quantizer
            -> the network of ``unit-vocos``, which predicts the pitch and filters its harmonics

Nothing runs at the rate of samples, most layers run at that of the units, and no phase has to be
coded or guessed: that is what lets it be trained on two CPU cores. Every layer is causal and takes
an explicit state, so a stream computes in blocks what the whole does. The decoder alone waits,
``lookahead`` frames, for the windows that reach over a frame's end.

Source:
    Défossez et al. 2022 (EnCodec: a causal codec), arXiv:2210.13438; Défossez et al. 2024
    (Mimi: the first codebook beside the others), arXiv:2410.00037; the decoder's are named in
    :mod:`speechlm_vocoders.vocos_model`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.settings import at_least
from speechlm.streaming import State
from speechlm_tokenizers.quantizers import Quantized, ResidualFSQ, ResidualVQ, add_up
from speechlm_vocoders.vocos_model import ConvNeXtBlock, VocosModel, VocosModelConfig

LEAST_MAGNITUDE = 1e-6
"""What quieter bands are heard as, -120 dB of a full wave's."""
MIDDLE, SPREAD = -8.5, 3.0
"""About the mean of speech's logarithms of magnitudes, and twice their standard deviation."""


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
    pitch_window: int = 1024
    """Samples that the encoder's second spectra see, in which a voice's harmonics stand apart."""
    pitch_top_hz: float = 1000.0
    """How far up the second spectra are heard."""
    dim: int = 256
    """Width of the layers."""
    encoder_blocks: int = 4
    decoder_unit_blocks: int = 3
    """Blocks of the decoder at the units' rate, before the pitch is predicted."""
    decoder_blocks: int = 3
    """Blocks of the decoder at the spectra's rate."""
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
    lookahead: int = 2
    """Frames of units that the decoder waits for."""
    block_frames: int = 4
    """Frames computed at once by streams: more are faster, fewer come sooner."""

    def __post_init__(self) -> None:
        for name in (
            *("sample_rate", "hop_length", "num_mels", "dim", "encoder_blocks"),
            *("num_codebooks", "code_dim", "block_frames"),
        ):
            at_least(1, name, getattr(self, name))
        at_least(2, "vocab_size", self.vocab_size)
        self.decoder()  # which checks its own
        for name in ("analysis_window", "pitch_window"):
            if getattr(self, name) < self.spectral_hop:
                raise ConfigError(
                    f"{name} must be at least spectral_hop ({self.spectral_hop}), "
                    f"got {getattr(self, name)}"
                )
        if not 0 <= self.pitch_top_hz <= self.sample_rate / 2:
            raise ConfigError(
                f"pitch_top_hz must be within 0..{self.sample_rate / 2:g}, half the sample rate, "
                f"got {self.pitch_top_hz:g}"
            )
        if self.quantizer == "fsq" and (
            min(self.fsq_values, default=0) < 2 or math.prod(self.fsq_values) != self.vocab_size
        ):
            raise ConfigError(
                "fsq_values must be numbers from 2 on whose product is vocab_size "
                f"({self.vocab_size}), got {list(self.fsq_values)}"
            )

    def decoder(self) -> VocosModelConfig:
        """The decoder's sizes."""
        return VocosModelConfig(
            num_features=self.dim,
            sample_rate=self.sample_rate,
            hop_length=self.hop_length,
            spectral_hop=self.spectral_hop,
            fft_size=self.synthesis_window,
            dim=self.dim,
            num_unit_layers=self.decoder_unit_blocks,
            num_layers=self.decoder_blocks,
            ffn_factor=self.expansion,
            kernel=self.kernel_size,
            lookahead=self.lookahead,
            speaker_dim=0,
        )

    @property
    def pitch_bins(self) -> int:
        """How many bins of the second spectra are heard, the constant one aside."""
        return int(self.pitch_top_hz * self.pitch_window / self.sample_rate)

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
        self.decoder = VocosModel(config.decoder())


class Encoder(nn.Module):
    """Samples to one vector a frame of units."""

    window: Tensor
    """float32 [analysis_window]."""
    pitch_window: Tensor
    """float32 [pitch_window]."""
    filters: Tensor
    """Triangles over the bins of a spectrum, float32 [bins, mels]."""

    def __init__(self, config: CausalCodecConfig) -> None:
        super().__init__()
        self._hop, self._spectra = config.spectral_hop, config.spectra
        self._pitch_bins = config.pitch_bins
        bins = config.analysis_window // 2 + 1
        # Kept with the weights: computed elsewhere they might differ in a last bit.
        self.register_buffer("window", torch.hann_window(config.analysis_window))
        self.register_buffer("pitch_window", torch.hann_window(config.pitch_window))
        self.register_buffer("filters", mel_filters(config.sample_rate, bins, config.num_mels))
        bands = config.num_mels + config.pitch_bins
        self.enter = nn.Linear(config.spectra * bands, config.dim)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(
                config.dim,
                config.expansion * config.dim,
                config.kernel_size,
                1 / config.encoder_blocks,
            )
            for _ in range(config.encoder_blocks)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, waves: Tensor, state: State | None = None) -> Tensor:
        """Hear the next stretch of recordings.

        Args:
            waves: float32 [B, F * hop_length].
            state: The stream's; None where that is all.

        Returns:
            float [B, F, dim].
        """
        reach = max(len(self.window), len(self.pitch_window)) - self._hop
        past = None if state is None else state.get(self)
        if past is None:
            past = waves.new_zeros(len(waves), reach)
        heard = torch.cat([past, waves], dim=1)
        if state is not None:
            # A copy: a view would keep all of the block.
            state[self] = heard[:, heard.shape[1] - reach :].clone()
        # In half precision spectra of quiet sound vanish.
        with torch.autocast(waves.device.type, enabled=False):
            bands = self._bands(heard.float(), waves.shape[1] // self._hop)
        hidden = self.enter(rearrange(bands, "b (f s) m -> b f (s m)", s=self._spectra))
        for block in self.blocks:
            hidden = block(hidden, state)
        result: Tensor = self.norm(hidden)
        return result

    def _bands(self, waves: Tensor, count: int) -> Tensor:
        """The last ``count`` spectra of float32 [B, T], float32 [B, count, bands]."""
        mels = self._magnitudes(waves, self.window, count) @ self.filters
        harmonics = self._magnitudes(waves, self.pitch_window, count)[..., 1 : self._pitch_bins + 1]
        # Means over a window, so that both windows hear a level as the same.
        mels, harmonics = mels / len(self.window), harmonics / len(self.pitch_window)
        bands = torch.cat([mels, harmonics], dim=2)
        return (bands.clamp(min=LEAST_MAGNITUDE).log() - MIDDLE) / SPREAD

    def _magnitudes(self, waves: Tensor, window: Tensor, count: int) -> Tensor:
        length = (count - 1) * self._hop + len(window)
        frames = waves[:, waves.shape[1] - length :].unfold(1, len(window), self._hop)
        found: Tensor = torch.fft.rfft(frames * window).abs()
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


def _quantizer(levels: int, config: CausalCodecConfig) -> ResidualVQ | ResidualFSQ:
    if config.quantizer == "fsq":
        return ResidualFSQ(levels, config.fsq_values, config.code_dim)
    return ResidualVQ(levels, config.vocab_size, config.code_dim)
