"""EnCodec's network, read top to bottom: SEANet encoder, residual quantizer, SEANet decoder.

Written anew because neither of its published implementations can stream. Here every layer that
looks back takes a :data:`speechlm.streaming.State`, in which it leaves what the next block needs;
without one it sees a whole recording. The published models reflect a recording at its ends, at
every layer anew: so a stream's first block must be long enough to be reflected (``least_block``),
and its last one is as long as what is left and reflected too. Then a stream computes what the
whole gives, at any length.

Source:
    Défossez et al. 2022, "High Fidelity Neural Audio Compression", arXiv:2210.13438.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.streaming import State

FEW_FRAMES = 32
"""Up to so many results of a convolution, or half as many steps of a recurrent network, the
library's kernels spend most of their time on laying out weights anew: plain matrix products take
a third of theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Sizes of an EnCodec; the defaults are those of ``encodec_24khz``."""

    sample_rate: int = 24_000
    """Hz."""
    channels: int = 1
    """Of the waveform; a mono recording is given to each."""
    dimension: int = 128
    """Features of a frame, which the codebooks' vectors have too."""
    num_filters: int = 32
    """Channels after the first convolution; each downsampling doubles them."""
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    """Upsampling of each stage of the decoder; the encoder's are the same backwards."""
    num_residual_layers: int = 1
    """Residual blocks a stage."""
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth: int = 2
    """Each residual block of a stage is dilated by so much more than the one before."""
    compress: int = 2
    """A residual block computes in so many times fewer channels."""
    num_lstm_layers: int = 2
    conv_shortcut: bool = True
    """Whether a residual block's shortcut is a convolution."""
    causal: bool = True
    group_norm: bool = False
    """Whether each convolution is normalised over its whole input."""
    segment: int | None = None
    """Samples that are coded on their own; None where a recording is coded as a whole."""
    normalize: bool = False
    """Whether each segment is divided by its root mean square."""
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        if min(self.ratios, default=0) < 1:
            raise ConfigError(f"ratios must be at least 1 each, got {self.ratios}")
        if self.causal == (self.segment is not None) or (self.causal and self.group_norm):
            raise ConfigError(
                "expected an EnCodec that is causal (as encodec_24khz), or one of fixed segments "
                "(as encodec_48khz); one that is neither, such as encodec_32khz, is not supported"
            )
        if self.normalize and self.segment is None:
            raise ConfigError("an EnCodec that normalises loudness must have segments")
        if self.segment is not None and self.segment % self.hop_length:
            raise ConfigError(
                f"segments of {self.segment} samples are no multiple of {self.hop_length}, the "
                "samples of a frame"
            )

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)

    @property
    def codebook_kbps(self) -> float:
        """What a codebook takes, as EnCodec counts: by whole frames a second."""
        frames = math.ceil(self.sample_rate / self.hop_length)
        return math.log2(self.codebook_size) * frames / 1000

    @property
    def least_block(self) -> int:
        """Frames that a stream's first block must have so that each layer can reflect it."""
        return max(self.kernel_size, self.last_kernel_size, 2)


class Conv(nn.Conv1d):
    """A convolution over an input reflected at its ends, or that goes on where a state ended."""

    def __init__(
        self,
        architecture: Architecture,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation=dilation)
        self._causal = architecture.causal
        self._reach = (kernel - 1) * dilation + 1 - stride
        self.norm = nn.GroupNorm(1, outputs) if architecture.group_norm else None

    def forward(self, input: Tensor, state: State | None = None) -> Tensor:
        """Convolve float32 [1, C, T] to [1, C', ceil(T / stride)].

        Where there is a state, only a recording's last block may have a T that is no multiple
        of the stride.
        """
        extra = -input.shape[2] % self.stride[0]
        if self._causal:
            past = None if state is None else state.get(self)
            if past is None:
                input = _reflect(input, self._reach, extra)
            else:
                input = _reflect(torch.cat([past, input], dim=2), 0, extra)
            if state is not None:
                state[self] = input[..., input.shape[2] - self._reach :].clone()
        else:
            right = self._reach // 2
            input = _reflect(input, self._reach - right, right + extra)
        result = self._convolve(input)
        return result if self.norm is None else self.norm(result)

    def _convolve(self, input: Tensor) -> Tensor:
        (kernel,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        span = (kernel - 1) * dilation + 1
        if self.bias is None or (input.shape[2] - span) // stride >= FEW_FRAMES:
            return super().forward(input)
        # float32 [T, C * kernel]: what each result is made of.
        seen = input[0].unfold(1, span, stride)[..., ::dilation].transpose(0, 1).flatten(1)
        return torch.addmm(self.bias, seen, self.weight.flatten(1).T).T[None]


def _reflect(input: Tensor, left: int, right: int) -> Tensor:
    """Mirror the ends outwards; an input too short for that has zeros behind it first."""
    if left == right == 0:
        return input
    short = max(0, max(left, right) + 1 - input.shape[2])
    padded = F.pad(F.pad(input, (0, short)), (left, right), mode="reflect")
    return padded[..., : padded.shape[2] - short]


class Upsampling(nn.ConvTranspose1d):
    """A transposed convolution twice as long as its stride; what reaches over an end is cut.

    A causal one cuts it all at the end, or leaves it to the stream's next block.
    """

    def __init__(self, architecture: Architecture, inputs: int, outputs: int, ratio: int) -> None:
        super().__init__(inputs, outputs, 2 * ratio, ratio)
        self._ratio = ratio
        self._causal = architecture.causal
        self.norm = nn.GroupNorm(1, outputs) if architecture.group_norm else None

    def forward(self, input: Tensor, state: State | None = None) -> Tensor:  # type: ignore[override]
        """Upsample float32 [1, C, T] to [1, C', T * ratio]."""
        assert self.bias is not None
        result = self._upsample(input)
        if self._causal:
            end = result.shape[2] - self._ratio
            if state is not None:
                if (past := state.get(self)) is not None:
                    result[..., : self._ratio] += past
                state[self] = result[..., end:].clone()
            return result[..., :end] + self.bias[:, None]
        result = result + self.bias[:, None]
        if self.norm is not None:
            result = self.norm(result)
        right = self._ratio // 2
        return result[..., self._ratio - right : result.shape[2] - right]

    def _upsample(self, input: Tensor) -> Tensor:
        """All of it without bias, float32 [1, C', (T + 1) * ratio]."""
        if input.shape[2] > FEW_FRAMES:
            return F.conv_transpose1d(input, self.weight, None, self._ratio)
        halves = torch.mm(input[0].T, self.weight.flatten(1))
        halves = halves.view(input.shape[2], -1, 2, self._ratio)
        # float32 [T + 1, C', ratio]: the second half of each meets the first of the next.
        result = F.pad(halves[:, :, 0], (0, 0, 0, 0, 0, 1))
        result[1:] += halves[:, :, 1]
        return result.transpose(0, 1).flatten(1)[None]


class LSTM(nn.Module):
    """A recurrent network beside a shortcut."""

    def __init__(self, dimension: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dimension, dimension, num_layers)

    def forward(self, input: Tensor, state: State | None = None) -> Tensor:
        steps = input[0].T
        past = None if state is None else state.get(self)
        if past is None:
            past = input.new_zeros(2, self.lstm.num_layers, self.lstm.hidden_size)
        if len(steps) <= FEW_FRAMES // 2:
            result, past = self._few(steps, past)
        else:
            result, memory = self.lstm(steps, (past[0], past[1]))
            past = torch.stack(memory)
        if state is not None:
            state[self] = past
        return (result + steps).T[None]

    def _few(self, steps: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """The same for float32 [T, D] of few steps and memory [2, layers, D]."""
        memory = []
        for layer, (hidden, cell) in enumerate(past.transpose(0, 1)):
            of_input, of_hidden, *biases = self.lstm.all_weights[layer]
            heard = torch.addmm(biases[0] + biases[1], steps, of_input.T)
            results = []
            for step in heard:
                gates = torch.addmv(step, of_hidden, hidden)
                enter, keep, new, leave = gates.chunk(4)
                cell = torch.sigmoid(keep) * cell + torch.sigmoid(enter) * torch.tanh(new)
                hidden = torch.sigmoid(leave) * torch.tanh(cell)
                results.append(hidden)
            steps = torch.stack(results)
            memory.append(torch.stack([hidden, cell]))
        return steps, torch.stack(memory, dim=1)


class ResidualBlock(nn.Module):
    def __init__(self, architecture: Architecture, channels: int, dilation: int) -> None:
        super().__init__()
        hidden = channels // architecture.compress
        kernel = architecture.residual_kernel_size
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                Conv(architecture, channels, hidden, kernel, dilation=dilation),
                nn.ELU(),
                Conv(architecture, hidden, channels, 1),
            ]
        )
        self.shortcut = (
            Conv(architecture, channels, channels, 1) if architecture.conv_shortcut else None
        )

    def forward(self, input: Tensor, state: State | None = None) -> Tensor:
        shortcut = input if self.shortcut is None else self.shortcut(input, state)
        return shortcut + _run(self.block, input, state)


def _run(layers: nn.ModuleList, input: Tensor, state: State | None) -> Tensor:
    for layer in layers:
        input = layer(input) if isinstance(layer, nn.ELU) else layer(input, state)
    return input


def _residual_blocks(architecture: Architecture, channels: int) -> Iterator[nn.Module]:
    for index in range(architecture.num_residual_layers):
        yield ResidualBlock(architecture, channels, architecture.dilation_growth**index)


class Encoder(nn.Module):
    """Waveform to features; layers stand at the numbers that the published weights have."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.num_filters
        layers: list[nn.Module] = [
            Conv(architecture, architecture.channels, channels, architecture.kernel_size)
        ]
        for ratio in reversed(architecture.ratios):
            layers += _residual_blocks(architecture, channels)
            layers += [nn.ELU(), Conv(architecture, channels, 2 * channels, 2 * ratio, ratio)]
            channels *= 2
        if architecture.num_lstm_layers:
            layers.append(LSTM(channels, architecture.num_lstm_layers))
        layers += [
            nn.ELU(),
            Conv(architecture, channels, architecture.dimension, architecture.last_kernel_size),
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, wave: Tensor, state: State | None = None) -> Tensor:
        """Take float32 [1, channels, T]; give [1, D, ceil(T / hop_length)]."""
        return _run(self.layers, wave, state)


class Decoder(nn.Module):
    """Features to waveform, the encoder's mirror image."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.num_filters * 2 ** len(architecture.ratios)
        layers: list[nn.Module] = [
            Conv(architecture, architecture.dimension, channels, architecture.kernel_size)
        ]
        if architecture.num_lstm_layers:
            layers.append(LSTM(channels, architecture.num_lstm_layers))
        for ratio in architecture.ratios:
            layers += [nn.ELU(), Upsampling(architecture, channels, channels // 2, ratio)]
            channels //= 2
            layers += _residual_blocks(architecture, channels)
        layers += [
            nn.ELU(),
            Conv(architecture, channels, architecture.channels, architecture.last_kernel_size),
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor, state: State | None = None) -> Tensor:
        """Take float32 [1, D, F]; give [1, channels, F * hop_length]."""
        return _run(self.layers, features, state)


class ResidualQuantizer:
    """Nearest vectors, each codebook's of what those before it left over."""

    def __init__(self, codebooks: Tensor) -> None:
        """Take the codebooks, float32 [K, V, D]."""
        self._codebooks = codebooks
        self._squares = codebooks.square().sum(dim=2)

    def encode(self, features: Tensor) -> Tensor:
        """Quantize float32 [1, D, F] to codes, int64 [K, F]."""
        rest = features[0].T
        codes = []
        for codebook, squares in zip(self._codebooks, self._squares, strict=True):
            # A vector's own square is the same for all of a codebook.
            nearest = torch.addmm(squares, rest, codebook.T, alpha=-2).argmin(dim=1)
            rest = rest - codebook[nearest]
            codes.append(nearest)
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum up the vectors of int64 [K, F], as float32 [1, D, F]."""
        features = self._codebooks[0][codes[0]]
        for codebook, row in zip(self._codebooks[1:], codes[1:], strict=True):
            features = features + codebook[row]
        return features.T[None]


SCALES_DB = (-90.0, 6.0)
"""Loudness of a segment, as a code: its levels lie evenly within these, dB of full scale."""


def scale_code(scale: Tensor, levels: int) -> Tensor:
    """The level nearest to a root mean square, float32 [] to int64 []."""
    low, high = SCALES_DB
    place = (20 * scale.double().log10() - low) / (high - low)
    return (place * (levels - 1)).round().clamp(0, levels - 1).long()


def scale_of(code: Tensor, levels: int) -> Tensor:
    """The root mean square that a level stands for, int64 [] to float32 []."""
    low, high = SCALES_DB
    decibels = low + (high - low) * code.double() / (levels - 1)
    return torch.pow(10.0, decibels / 20).float()
