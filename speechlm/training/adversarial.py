"""Losses for training what renders sound: discriminators, feature matching and log-mels.

fairseq2's trainer knows one optimizer and one backward pass. Generator and discriminators are
therefore trained on one sum: the generator's terms pass through discriminators whose parameters
are held constant, the discriminators' term sees the generator's output cut off from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

_SLOPE = 0.1
"""Of the leaky rectifier below zero."""
Judgement = tuple[Tensor, list[Tensor]]
"""A score for each stretch, float32 [B, N], and what every layer saw, [B, C, ...] each."""


class Discriminators(nn.Module):
    """HiFi-GAN's critics: one a period, which folds the wave, and one a scale, which blurs it.

    Args:
        periods: Samples after which each multi-period discriminator folds the wave.
        num_scales: Multi-scale discriminators; each hears half the rate of the one before.
        channels: Width of the narrowest layer, 32 in the paper; all others follow.

    Source:
        Kong et al. 2020 (HiFi-GAN), arXiv:2010.05646, whose first scale's spectral
        normalization is weight normalization here as in the others.
    """

    def __init__(
        self,
        *,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        num_scales: int = 3,
        channels: int = 32,
    ) -> None:
        super().__init__()
        self.periods = nn.ModuleList(_PeriodDiscriminator(period, channels) for period in periods)
        self.scales = nn.ModuleList(_ScaleDiscriminator(channels) for _ in range(num_scales))

    def forward(self, waves: Tensor) -> list[Judgement]:
        """Judge waves, float32 [B, T], by each discriminator."""
        judgements: list[Judgement] = [critic(waves) for critic in self.periods]
        for critic in self.scales:
            judgements.append(critic(waves))
            waves = F.avg_pool1d(waves[:, None], 4, stride=2, padding=2)[:, 0]
        return judgements


class _PeriodDiscriminator(nn.Module):
    """Judges every ``period``-th sample together, by convolutions over such rows alone."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, channels, 4 * channels, 16 * channels, 32 * channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), stride=(3, 1), padding=(2, 0)))
            for before, after in pairwise(widths)
        )
        self.layers.append(weight_norm(nn.Conv2d(widths[-1], widths[-1], (5, 1), padding=(2, 0))))
        self.head = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waves: Tensor) -> Judgement:
        padded = F.pad(waves, (0, -waves.shape[1] % self.period))
        rows = padded.reshape(len(waves), 1, -1, self.period)
        return _judge(rows, self.layers, self.head)


class _ScaleDiscriminator(nn.Module):
    """Judges a smoothed wave, by wide grouped convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [1, *(channels * factor for factor in (4, 4, 8, 16, 32, 32, 32))]
        kernels, strides = (15, 41, 41, 41, 41, 41, 5), (1, 2, 2, 4, 4, 1, 1)
        most_groups = (1, 4, 16, 16, 16, 16, 1)
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv1d(
                    before,
                    after,
                    kernel,
                    stride=stride,
                    groups=gcd(groups, before),
                    padding=kernel // 2,
                )
            )
            for (before, after), kernel, stride, groups in zip(
                pairwise(widths), kernels, strides, most_groups, strict=True
            )
        )
        self.head = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waves: Tensor) -> Judgement:
        return _judge(waves[:, None], self.layers, self.head)


def _judge(hidden: Tensor, layers: nn.ModuleList, head: nn.Module) -> Judgement:
    features = []
    for layer in layers:
        hidden = F.leaky_relu(layer(hidden), _SLOPE)
        features.append(hidden)
    score = head(hidden)
    return score.flatten(1), [*features, score]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adversarial:
    """The terms of adversarial training, float32 [] each, summed over discriminators."""

    generator: Tensor
    """How far the generator's output is from being taken as real."""
    features: Tensor
    """How far from the real recording's each layer's view of it is (feature matching)."""
    discriminators: Tensor
    """How badly the discriminators tell one from the other."""


def adversarial_losses(discriminators: nn.Module, real: Tensor, fake: Tensor) -> Adversarial:
    """Compare recordings with what a generator made of them.

    One backward pass over any weighted sum of the three gives the generator the gradients of
    its two terms alone, and the discriminators' parameters those of theirs alone.

    Args:
        discriminators: Gives (score, features) pairs, as :class:`Discriminators` does.
        real: float32 [B, T].
        fake: The generator's output, float32 [B, T].

    Source:
        Mao et al. 2017 (least squares), arXiv:1611.04076; Larsen et al. 2016 (features),
        arXiv:1512.09300.
    """
    constant = {name: value.detach() for name, value in discriminators.named_parameters()}
    generator = features = critics = real.new_zeros(())
    seen = discriminators(torch.cat([real, fake.detach()]))
    for (scores, layers), (score, fake_layers) in zip(
        seen, functional_call(discriminators, constant, (fake,)), strict=True
    ):
        real_score, fake_score = scores.chunk(2)
        critics = critics + (1 - real_score).square().mean() + fake_score.square().mean()
        generator = generator + (1 - score).square().mean()
        # The score itself is the generator's term; feature matching compares what leads to it.
        for layer, fake_layer in zip(layers[:-1], fake_layers[:-1], strict=True):
            real_layer = layer.detach()[: len(real)]
            features = features + (real_layer - fake_layer).abs().mean()
    return Adversarial(generator=generator, features=features, discriminators=critics)


class MelLoss(nn.Module):
    """How far apart two waves' log-mel spectra are, mean over windows of several lengths.

    Args:
        sample_rate: Hz.
        num_mels: Mel bands of the longest window. Shorter ones have fewer in proportion, so
            that no band falls between two bins.
        windows: Samples a window; each moves by a quarter of itself.
    """

    def __init__(
        self, sample_rate: int, num_mels: int = 80, windows: Sequence[int] = (2048, 1024, 512)
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        for window in self.windows:
            bands = max(1, num_mels * window // max(self.windows))
            # Both follow from the arguments: a checkpoint need not keep them.
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(
                f"filters_{window}", _mel_filters(sample_rate, window, bands), persistent=False
            )

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compare float32 [B, T] with float32 [B, T]; gives float32 []."""
        both = torch.cat([real, fake]).float()
        loss = both.new_zeros(())
        # Half precision, where training uses it, would drown quiet bands in rounding.
        with torch.autocast(both.device.type, enabled=False):
            for window in self.windows:
                expected, got = self.log_mels(both, window).chunk(2)
                loss = loss + (expected - got).abs().mean()
        return loss / len(self.windows)

    def log_mels(self, waves: Tensor, window: int) -> Tensor:
        """Log-mel spectra, float32 [B, bands, 1 + T // (window // 4)]; silence beyond the ends."""
        spectra = torch.stft(
            waves,
            window,
            hop_length=window // 4,
            window=self.get_buffer(f"window_{window}"),
            pad_mode="constant",
            return_complex=True,
        )
        # The root's slope at zero is infinite.
        magnitudes = (spectra.real.square() + spectra.imag.square() + 1e-9).sqrt()
        return (self.get_buffer(f"filters_{window}") @ magnitudes).clamp(min=1e-5).log()


def _mel_filters(sample_rate: int, window: int, bands: int) -> Tensor:
    """Triangles from 0 to half the rate, each a mean over its bins, float32 [bands, bins]."""
    from torchaudio.functional import melscale_fbanks

    filters: Tensor = melscale_fbanks(window // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate).T
    return filters / filters.sum(dim=1, keepdim=True)
