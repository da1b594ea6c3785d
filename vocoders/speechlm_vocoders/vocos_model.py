"""The network of ``unit-vocos``: causal ConvNeXt blocks predict spectra, Fourier sounds them.

    units int64 [B, K, F] -> embeddings, summed over codebooks, and the speaker's
      -> ConvNeXt blocks at the units' rate -> pitch
      -> repeated to the spectra's rate, pitch added -> ConvNeXt blocks
      -> log-magnitude and phase for a pulse train of that pitch, log-magnitude for noise
      -> overlap-add -> float32 [B, F * hop_length]

Vocos predicts phases out of nothing, which only long adversarial training teaches. And units say
which sound it is, not at what pitch: asked for it all the same, a network answers with the mean
of all pitches, a whisper. Here the pitch is predicted first, and magnitudes and phases are those
of a filter upon a pulse train of that pitch: harmonics are coherent from the first step on, and
a loss between log-mels is enough to learn the rest.

Every layer is causal, and a window begins ``lookahead`` frames before the units that have just
come: that is all of the future it knows. A stream computes blocks of a fixed size, with what each
layer remembers in a :data:`speechlm.streaming.State`.

Source:
    Siuzdak 2023 (Vocos), arXiv:2306.00814; Liu et al. 2022 (ConvNeXt), arXiv:2201.03545;
    Engel et al. 2020 (predicted filters upon harmonics and noise), arXiv:2001.04643.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.settings import at_least
from speechlm.streaming import State

MIDDLE_PITCH = math.log(140.0)
"""What predictions of the pitch start from, log of Hz."""
LOWEST_PITCH, HIGHEST_PITCH = math.log(40.0), math.log(800.0)
HEAD_SCALE = 4.0
"""Of all that the last layer says: log-magnitudes reach far, and that should not take it long."""
LARGEST_LOG = 6.0
"""Of a magnitude: what one bad step of training makes must stay finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocosModelConfig:
    """The sizes of a :class:`VocosModel`."""

    codebook_sizes: tuple[int, ...] = ()
    """Units of each codebook; none where features are rendered."""
    num_features: int = 0
    """Features of a frame, such as log-mels, where those are rendered instead of units."""
    sample_rate: int
    """Hz."""
    hop_length: int
    """Samples a unit frame."""
    spectral_hop: int
    """Samples from one spectrum to the next; divides ``hop_length``."""
    fft_size: int
    """Samples of a window; a multiple of ``spectral_hop``."""
    dim: int
    num_unit_layers: int
    """Blocks at the units' rate, before the pitch is predicted."""
    num_layers: int
    """Blocks at the spectra's rate."""
    ffn_factor: int
    """Width of a block's inner layer, in ``dim``."""
    kernel: int
    """Frames that the convolution of a block sees."""
    lookahead: int
    """Unit frames known beyond the one that is rendered."""
    speaker_dim: int
    """Length of the embeddings of voices; 0 for a vocoder of one voice."""

    def __post_init__(self) -> None:
        sizes = (*self.codebook_sizes, *([self.num_features] if self.num_features else ()))
        if not sizes or min(sizes) < 1 or bool(self.codebook_sizes) == bool(self.num_features):
            raise ConfigError(
                "expected codebooks with units, or features instead, "
                f"got {list(self.codebook_sizes)} and {self.num_features}"
            )
        for name in ("dim", "num_unit_layers", "num_layers", "ffn_factor", "kernel"):
            at_least(1, name, getattr(self, name))
        at_least(0, "speaker_dim", self.speaker_dim)
        if self.spectral_hop < 1 or self.hop_length % self.spectral_hop:
            raise ConfigError(
                f"spectral_hop must divide the tokenizer's hop_length ({self.hop_length}), "
                f"got {self.spectral_hop}"
            )
        if self.fft_size % self.spectral_hop or self.fft_size < 3 * self.spectral_hop:
            raise ConfigError(
                f"fft_size must be at least 3 times spectral_hop ({self.spectral_hop}) and a "
                f"multiple of it, got {self.fft_size}"
            )
        least = -(-(self.fft_size - self.spectral_hop) // self.hop_length)
        if self.lookahead < least:
            raise ConfigError(
                f"lookahead must be at least {least} where windows of {self.fft_size} samples "
                f"overlap units of {self.hop_length}, got {self.lookahead}"
            )


class VocosModel(nn.Module):
    """Units to waveform."""

    mean_speaker: Tensor
    """The voice where none is asked for, float32 [speaker_dim]."""

    def __init__(self, config: VocosModelConfig) -> None:
        super().__init__()
        self.config = config
        self.repeats = config.hop_length // config.spectral_hop
        """Spectra a unit frame."""
        dim, bins = config.dim, config.fft_size // 2 + 1
        # One row more than units: what stands after the last one.
        self.embeddings = nn.ModuleList(
            nn.Embedding(size + 1, dim) for size in config.codebook_sizes
        )
        self.features = nn.Linear(config.num_features, dim) if config.num_features else None
        self.speaker = nn.Linear(config.speaker_dim, dim) if config.speaker_dim else None
        self.register_buffer("mean_speaker", torch.zeros(config.speaker_dim))
        self.input_norm = nn.LayerNorm(dim)
        self.unit_blocks = _blocks(config.num_unit_layers, config)
        self.pitch_head = nn.Linear(dim, self.repeats)
        self.places = nn.Parameter(0.1 * torch.randn(self.repeats, dim))
        """Tells the spectra of one unit apart."""
        self.pitch_input = nn.Linear(1, dim)
        self.blocks = _blocks(config.num_layers, config)
        self.output_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 3 * bins)
        """To the pulses' log-magnitudes and phases, and the noise's log-magnitudes."""
        self.pulse_train = PulseTrain(config.sample_rate, config.spectral_hop)
        self.pulse_windows = Windows(config.fft_size, config.spectral_hop)
        self.noise_windows = Windows(config.fft_size, config.spectral_hop)
        self.overlap_add = OverlapAdd(config.fft_size, config.spectral_hop)
        with torch.no_grad():
            for rows in self.embeddings.parameters():
                nn.init.normal_(rows, std=len(self.embeddings) ** -0.5)
            self.pitch_head.weight.mul_(0.1)
            # Quiet at first, and in the pulses' own phases.
            self.head.weight.mul_(0.3 / HEAD_SCALE)
            self.head.weight[bins : 2 * bins] = 0
            logs = torch.tensor([-3.0, 0.0, -5.0]) / HEAD_SCALE
            self.head.bias.copy_(logs.repeat_interleave(bins))

    def forward(
        self,
        input: Tensor,
        noise: Tensor,
        speaker: Tensor | None = None,
        pitch: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Render the next stretch of an utterance, ``lookahead`` frames late.

        Args:
            input: Units, int64 [B, K, F], -1 beyond the last; or features, float32 [B, F, D].
            noise: Drawn from a normal distribution, float32 [B, F * hop_length].
            speaker: Embeddings of the voices, float32 [B, D]; None where there is one voice.
            pitch: What to sound at instead of the pitch predicted, in the shape of that.
            state: The stream's; None where F is all.

        Returns:
            waves: float32 [B, F * hop_length], of which the first ``lookahead`` frames are of
                the time before the utterance.
            pitch: As predicted where each window ends, log of Hz, float32 [B, F * repeats].
        """
        hidden = self._embed(input) if self.features is None else self.features(input)
        if self.speaker is not None:
            hidden = hidden + self.speaker(speaker)[:, None]
        hidden = self.input_norm(hidden)
        for block in self.unit_blocks:
            hidden = block(hidden, state)
        # Pitch and phases need all their digits, whatever precision the layers compute in.
        predicted = self.pitch_head(hidden).float().flatten(1) + MIDDLE_PITCH
        pitch = predicted.clamp(LOWEST_PITCH, HIGHEST_PITCH) if pitch is None else pitch
        hidden = (hidden[:, :, None] + self.places).flatten(1, 2)
        hidden = hidden + self.pitch_input(pitch[..., None] - MIDDLE_PITCH)
        for block in self.blocks:
            hidden = block(hidden, state)
        said = HEAD_SCALE * self.head(self.output_norm(hidden)).float()
        loudness, phases, noisiness = said.chunk(3, dim=2)
        pulses = self.pulse_windows(self.pulse_train(pitch, state), state)
        filtered = pulses * torch.polar(loudness.clamp(max=LARGEST_LOG).exp(), phases)
        hiss = self.noise_windows(noise, state) * noisiness.clamp(max=LARGEST_LOG).exp()
        return self.overlap_add(filtered + hiss, state), predicted

    def _embed(self, codes: Tensor) -> Tensor:
        rows = [
            embedding(torch.where(row < 0, size, row))
            for row, size, embedding in zip(
                codes.unbind(1), self.config.codebook_sizes, self.embeddings, strict=True
            )
        ]
        return torch.stack(rows).sum(dim=0)


class ConvNeXtBlock(nn.Module):
    """A causal convolution of each channel alone, then two layers over all channels."""

    def __init__(self, dim: int, ffn_dim: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(kernel, dim) * kernel**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, ffn_dim)
        self.outer = nn.Linear(ffn_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, input: Tensor, state: State | None) -> Tensor:
        """float32 [B, F, D] to the same shape."""
        reach = len(self.kernel) - 1
        past = None if state is None else state.get(self)
        padded = F.pad(input, (0, 0, reach, 0)) if past is None else torch.cat([past, input], dim=1)
        if state is not None:
            state[self] = padded[:, padded.shape[1] - reach :]
        # For so few frames as a stream's block has, F.conv1d takes three times as long.
        count = input.shape[1]
        hidden = padded[:, :count] * self.kernel[0]
        for place in range(1, reach + 1):
            hidden = torch.addcmul(hidden, padded[:, place : place + count], self.kernel[place])
        hidden = self.outer(F.gelu(self.inner(self.norm(hidden))))
        result: Tensor = input + hidden * self.scale
        return result


def _blocks(count: int, config: VocosModelConfig) -> nn.ModuleList:
    return nn.ModuleList(
        ConvNeXtBlock(config.dim, config.ffn_factor * config.dim, config.kernel, 1 / count)
        for _ in range(count)
    )


class PulseTrain(nn.Module):
    """All harmonics of a pitch, equally loud, together of variance 1."""

    def __init__(self, sample_rate: int, hop_length: int) -> None:
        super().__init__()
        self.sample_rate, self.hop_length = sample_rate, hop_length

    @torch.no_grad()
    def forward(self, pitch: Tensor, state: State | None) -> Tensor:
        """Log of Hz at the end of each hop, float32 [B, N], to float32 [B, N * hop_length]."""
        # Turns add up over minutes: single precision would lose the phase.
        steps = pitch.double().exp() / self.sample_rate
        past = None if state is None else state.get(self)
        if past is None:
            past = torch.stack([torch.zeros_like(steps[:, 0]), steps[:, 0]], dim=1)
        before = torch.cat([past[:, 1:], steps[:, :-1]], dim=1)
        share = torch.arange(1, self.hop_length + 1, device=pitch.device) / self.hop_length
        steps = torch.lerp(before[..., None], steps[..., None], share.double()).flatten(1)
        turns = past[:, :1] + steps.cumsum(dim=1)
        if state is not None:
            state[self] = torch.stack([turns[:, -1] % 1, steps[:, -1]], dim=1)
        # Half a turn either way of the pulse, where the sum over harmonics has a closed form.
        half_angle = (math.pi * (turns - turns.round())).float()
        harmonics = torch.floor(0.5 / steps).float()
        below = torch.sin(half_angle)
        near = below.abs() < 1e-4
        total = torch.sin((2 * harmonics + 1) * half_angle) / torch.where(near, 1.0, below)
        total = torch.where(near, 2 * harmonics + 1, total)
        return (total - 1) * torch.rsqrt(2 * harmonics)


class Windows(nn.Module):
    """Spectra of overlapping windows, of which each ends with a hop."""

    window: Tensor

    def __init__(self, size: int, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        self.register_buffer("window", torch.hann_window(size), persistent=False)

    def forward(self, wave: Tensor, state: State | None) -> Tensor:
        """float32 [B, N * hop_length] to complex64 [B, N, size // 2 + 1]."""
        reach = len(self.window) - self.hop_length
        past = None if state is None else state.get(self)
        padded = F.pad(wave, (reach, 0)) if past is None else torch.cat([past, wave], dim=1)
        if state is not None:
            state[self] = padded[:, padded.shape[1] - reach :]
        windows = padded.unfold(1, len(self.window), self.hop_length) * self.window
        spectra: Tensor = torch.fft.rfft(windows)
        return spectra


class OverlapAdd(nn.Module):
    """Spectra back to a wave; undoes :class:`Windows`, a window less a hop later."""

    window: Tensor

    def __init__(self, size: int, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        window = torch.hann_window(size)
        # Squared windows that overlap add up to a constant.
        scale = hop_length / window.square().sum()
        self.register_buffer("window", window * scale, persistent=False)

    def forward(self, spectra: Tensor, state: State | None) -> Tensor:
        """complex64 [B, N, size // 2 + 1] to float32 [B, N * hop_length]."""
        count, overlap = spectra.shape[1], len(self.window) // self.hop_length
        frames = torch.fft.irfft(spectra, n=len(self.window)) * self.window
        pieces = frames.unflatten(2, (overlap, self.hop_length))
        wave = sum(
            F.pad(piece, (0, 0, place, overlap - 1 - place))
            for place, piece in enumerate(pieces.unbind(2))
        )
        assert isinstance(wave, Tensor)
        past = None if state is None else state.get(self)
        if past is not None:
            wave = wave + F.pad(past, (0, 0, 0, count))
        if state is not None:
            state[self] = wave[:, count:]
        return wave[:, :count].flatten(1)
