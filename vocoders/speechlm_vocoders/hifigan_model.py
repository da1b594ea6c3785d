"""HiFi-GAN over units, in one piece or in blocks of any size with an explicit state.

    units [B, K, F] -> embeddings, and those of voice and style -> convolution
      -> levels, each an upsampling and the mean of some residual blocks -> convolution -> tanh

No layer is causal, so in a stream each gives what is certain so far and holds back the rest: a
convolution its past input, an upsampling what overlaps, a sum whatever the slower of its
terms has yet to match. What a stream computes is then what the whole computes, and nothing is
computed twice. With ``last`` zeros follow, as beyond the end of a whole input.

Source:
    Kong et al. 2020 (HiFi-GAN), arXiv:2010.05646; Polyak et al. 2021 (units),
    arXiv:2104.00355; Lee et al. 2022 (durations), arXiv:2107.05604.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.settings import at_least
from speechlm.streaming import State

SLOPE = 0.1
"""Of the leaky rectifiers below zero, but for the last one's, which is 0.01."""
EDGE_KERNEL = 7
"""Of the first and the last convolution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HiFiGANConfig:
    """What a :class:`HiFiGAN` is made of. Defaults: V1 of the paper, for units at 50 Hz, 16 kHz."""

    num_units: int
    """Units of the first codebook."""
    side_sizes: tuple[int, ...] = ()
    """Vocabularies of the other codebooks, such as quantized pitch or style tokens."""
    embedding_dim: int = 128
    """Width of each codebook's embeddings."""
    raw_f0: bool = False
    """Whether a pitch contour comes beside the units, one value a frame."""
    num_speakers: int = 0
    """Voices of a table; 0 for none."""
    speaker_dim: int = 0
    """Length of speaker embeddings; 0 where voices come from a table or there is but one."""
    num_styles: int = 0
    """Styles of a table, of speaking or of language; 0 for none."""
    condition_dim: int = 128
    """Width of what a voice and a style each add to every frame."""
    repeats: int = 1
    """Frames of the generator a unit frame."""
    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    """Their product is how many samples a frame becomes."""
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4, 4)
    channels: int = 512
    """Before the first upsampling; each halves them."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    duration_dim: int = 0
    """Width of the duration predictor; 0 for none."""
    duration_kernel: int = 3

    def __post_init__(self) -> None:
        for name in ("num_units", "embedding_dim", "condition_dim", "repeats"):
            at_least(1, name, getattr(self, name))
        for name in ("num_speakers", "speaker_dim", "num_styles", "duration_dim"):
            at_least(0, name, getattr(self, name))
        if self.num_speakers and self.speaker_dim:
            raise ConfigError(
                "voices come from a table or as embeddings: expected num_speakers or speaker_dim "
                f"to be 0, got {self.num_speakers} and {self.speaker_dim}"
            )
        if not self.upsample_rates or len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ConfigError(
                f"expected one upsample_kernel_sizes for each of upsample_rates, at least one, "
                f"got {self.upsample_kernel_sizes} for {self.upsample_rates}"
            )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if rate < 1 or not rate <= kernel <= 3 * rate or (kernel - rate) % 2:
                raise ConfigError(
                    f"an upsampling by {rate} must have a kernel size from {rate} to {3 * rate} "
                    f"that differs from it by an even number, got {kernel}"
                )
        if self.channels < 1 or self.channels % 2 ** len(self.upsample_rates):
            raise ConfigError(
                f"channels must be a multiple of 2 ** {len(self.upsample_rates)}, as each of "
                f"upsample_rates halves them, got {self.channels}"
            )
        sizes, dilations = self.resblock_kernel_sizes, self.resblock_dilation_sizes
        if not sizes or len(sizes) != len(dilations) or not all(dilations):
            raise ConfigError(
                "expected dilations in resblock_dilation_sizes for each of "
                f"resblock_kernel_sizes, at least one, got {dilations} for {sizes}"
            )
        for size in (*sizes, self.duration_kernel):
            if size < 1 or size % 2 == 0:
                raise ConfigError(f"kernel sizes must be odd, got {size}")
        for dilation in (each for row in dilations for each in row):
            at_least(1, "resblock_dilation_sizes", dilation)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.num_units, *self.side_sizes)

    @property
    def hop_length(self) -> int:
        """Samples a unit frame."""
        return self.repeats * prod(self.upsample_rates)

    @property
    def input_dim(self) -> int:
        """Width of what the generator sees of a frame."""
        conditions = bool(self.num_speakers or self.speaker_dim) + bool(self.num_styles)
        return (
            len(self.codebook_sizes) * self.embedding_dim
            + self.raw_f0
            + conditions * self.condition_dim
        )

    @property
    def lookahead(self) -> int:
        """Unit frames that shape a sample from beyond its own."""
        reach = EDGE_KERNEL // 2
        blocks = zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True)
        slowest = max(kernel // 2 * sum(each + 1 for each in row) for kernel, row in blocks)
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            reach = reach * rate + (kernel - rate) // 2 + slowest
        return -(-(reach + EDGE_KERNEL // 2) // self.hop_length)


class HiFiGAN(nn.Module):
    """Units to waveform.

    Args:
        config: Sizes.
        dropout: Probability in the duration predictor, while training.
    """

    def __init__(self, config: HiFiGANConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        dim, condition = config.embedding_dim, config.condition_dim
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in config.codebook_sizes)
        self.speaker: nn.Module | None = None
        if config.num_speakers:
            self.speaker = nn.Embedding(config.num_speakers, condition)
        elif config.speaker_dim:
            self.speaker = nn.Linear(config.speaker_dim, condition)
            self.mean_speaker = nn.Buffer(torch.zeros(config.speaker_dim))
            """The voice when none is given; zeros where that is not known."""
        self.style = nn.Embedding(config.num_styles, condition) if config.num_styles else None
        self.durations = (
            DurationPredictor(dim, config.duration_dim, config.duration_kernel, dropout)
            if config.duration_dim
            else None
        )
        self.first = SameConv1d(config.input_dim, config.channels, EDGE_KERNEL)
        self.levels = nn.ModuleList(
            Level(config, config.channels >> index, rate, kernel)
            for index, (rate, kernel) in enumerate(
                zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
            )
        )
        self.last = SameConv1d(config.channels >> len(self.levels), 1, EDGE_KERNEL)
        with torch.no_grad():
            for module in [*self.levels.modules(), self.last]:
                if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                    module.weight.normal_(0.0, 0.01)

    def embed(
        self,
        codes: Tensor,
        speaker: Tensor | None = None,
        style: Tensor | None = None,
        f0: Tensor | None = None,
    ) -> Tensor:
        """Say what the generator sees.

        Args:
            codes: Units, int64 [B, K, F].
            speaker: Rows of the table, int64 [B], or embeddings, float32 [B, D], whichever the
                configuration says; None where it has neither.
            style: Rows of the table, int64 [B]; None where it has none.
            f0: Pitch, float32 [B, F * repeats]; None where ``raw_f0`` is off.

        Returns:
            float32 [B, input_dim, F * repeats].
        """
        rows = [table(row) for table, row in zip(self.embeddings, codes.unbind(1), strict=True)]
        features = torch.cat(rows, dim=2).transpose(1, 2)
        parts = [features.repeat_interleave(self.config.repeats, dim=2)]
        if self.config.raw_f0:
            assert f0 is not None
            parts.append(f0[:, None])
        for table, given in ((self.speaker, speaker), (self.style, style)):
            if table is not None:
                parts.append(table(given)[:, :, None].expand(-1, -1, parts[0].shape[2]))
        return torch.cat(parts, dim=1)

    def forward(self, features: Tensor, state: State | None = None, last: bool = True) -> Tensor:
        """Render features, float32 [B, input_dim, n], to float32 [B, n * prod(upsample_rates)].

        Args:
            features: Of :meth:`embed`; of a stream, its next stretch.
            state: The stream's; None for a whole input.
            last: Whether the stream ends here. Before, what hangs on features to come is held
                back.
        """
        hidden = self.first(features, state, last)
        for level in self.levels:
            hidden = level(hidden, state, last)
        # The papers' code leaves this one's slope at its library's default.
        wave: Tensor = self.last(F.leaky_relu(hidden), state, last)
        return torch.tanh(wave)[:, 0]


class DurationPredictor(nn.Module):
    """Each unit's embedding, amid its neighbours', to how long it lasts: log(1 + frames)."""

    def __init__(self, dim: int, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.first = SameConv1d(dim, width, kernel)
        self.first_norm = nn.LayerNorm(width)
        self.second = SameConv1d(width, width, kernel)
        self.second_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        self._dropout = nn.Dropout(dropout)

    def forward(self, embedded: Tensor, state: State | None = None, last: bool = True) -> Tensor:
        """Take units without repeats, float32 [B, embedding_dim, U]; give float32 [B, U].

        In a stream the last ones are held back, see :class:`HiFiGAN`.
        """
        hidden = self.first(embedded, state, last).transpose(1, 2)
        hidden = self._dropout(self.first_norm(F.relu(hidden)))
        hidden = self.second(hidden.transpose(1, 2), state, last).transpose(1, 2)
        hidden = self._dropout(self.second_norm(F.relu(hidden)))
        logs: Tensor = self.head(hidden)
        return logs[..., 0]


def frames_of(logs: Tensor) -> Tensor:
    """Whole frames, int64, at least one, from log(1 + frames)."""
    return torch.round(torch.exp(logs) - 1).long().clamp(min=1)


class Level(nn.Module):
    """An upsampling, and the mean of residual blocks that see ever further around a sample."""

    def __init__(self, config: HiFiGANConfig, channels: int, rate: int, kernel: int) -> None:
        super().__init__()
        self.up = SameConvTranspose1d(channels, channels // 2, kernel, rate)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels // 2, size, row)
            for size, row in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            )
        )

    def forward(self, hidden: Tensor, state: State | None, last: bool) -> Tensor:
        hidden = self.up(F.leaky_relu(hidden, SLOPE), state, last)
        results = [_queue(block, block(hidden, state, last), state) for block in self.blocks]
        # A wide block knows less of the newest samples than a narrow one.
        count = min(result.shape[2] for result in results)
        total = _take(self.blocks[0], results[0], count, state)
        for block, result in zip(self.blocks[1:], results[1:], strict=True):
            total = total + _take(block, result, count, state)
        return total / len(results)


class ResidualBlock(nn.Module):
    """Residual units of one kernel and growing dilations, one after another."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.units = nn.ModuleList(ResidualUnit(channels, kernel, each) for each in dilations)

    def forward(self, hidden: Tensor, state: State | None, last: bool) -> Tensor:
        for unit in self.units:
            hidden = unit(hidden, state, last)
        return hidden


class ResidualUnit(nn.Module):
    """A dilated convolution and a plain one, added to their input."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.dilated = SameConv1d(channels, channels, kernel, dilation)
        self.plain = SameConv1d(channels, channels, kernel)

    def forward(self, hidden: Tensor, state: State | None, last: bool) -> Tensor:
        inner: Tensor = self.dilated(F.leaky_relu(hidden, SLOPE), state, last)
        inner = self.plain(F.leaky_relu(inner, SLOPE), state, last)
        hidden = _queue(self, hidden, state)
        return _take(self, hidden, inner.shape[2], state) + inner


def _queue(key: nn.Module, arrived: Tensor, state: State | None) -> Tensor:
    """What waits under ``key``, and behind it what has just arrived, [B, C, n]."""
    if state is None or key not in state:
        return arrived
    return torch.cat([state[key], arrived], dim=2)


def _take(key: nn.Module, queued: Tensor, count: int, state: State | None) -> Tensor:
    """Take the first ``count`` samples; the others go on waiting under ``key``."""
    if state is not None:
        state[key] = queued[..., count:]
    return queued[..., :count]


class SameConv1d(nn.Conv1d):
    """A convolution that keeps the length: zeros stand before and after a whole input.

    In a stream, what came before stands before, and each result waits for what comes after.
    """

    def __init__(self, before: int, after: int, kernel: int, dilation: int = 1) -> None:
        self.reach = kernel // 2 * dilation
        """Samples that it sees on each side."""
        super().__init__(before, after, kernel, dilation=dilation, padding=self.reach)

    def forward(self, input: Tensor, state: State | None = None, last: bool = True) -> Tensor:
        """Convolve float32 [B, C, n]; in a stream the result may be of another length."""
        if state is None:
            return super().forward(input)
        past = state.get(self)
        if past is None:
            past = input.new_zeros(*input.shape[:2], self.reach)
        input = torch.cat([past, input], dim=2)
        if last:
            input = F.pad(input, (0, self.reach))
        count = max(0, input.shape[2] - 2 * self.reach)
        state[self] = input[..., count:]
        if count == 0:
            return input.new_zeros(len(input), self.out_channels, 0)
        return F.conv1d(input, self.weight, self.bias, dilation=self.dilation)


class SameConvTranspose1d(nn.ConvTranspose1d):
    """An upsampling from n to exactly n * rate; both ends of what reaches over are cut off."""

    def __init__(self, before: int, after: int, kernel: int, rate: int) -> None:
        self.rate = rate
        self.cut = (kernel - rate) // 2
        """Samples that are cut off at each end."""
        super().__init__(before, after, kernel, rate, padding=self.cut)

    def forward(  # type: ignore[override]
        self, input: Tensor, state: State | None = None, last: bool = True
    ) -> Tensor:
        """Upsample float32 [B, C, n]; in a stream the result may be of another length."""
        if state is None:
            return super().forward(input)
        carried = state.get(self)
        if input.shape[2] == 0 and carried is None:
            return input.new_zeros(len(input), self.out_channels, 0)
        length = input.shape[2] * self.rate
        result = input.new_zeros(len(input), self.out_channels, length + 2 * self.cut)
        if length:
            result += F.conv_transpose1d(input, self.weight, None, stride=self.rate)
        if carried is not None:
            result[..., : 2 * self.cut] += carried
        state[self] = result[..., length:]
        # The first input has what reaches over the start, the last one what does over the end.
        start = self.cut if carried is None else 0
        result = result[..., start : length + (self.cut if last else 0)]
        return result if self.bias is None else result + self.bias[:, None]
