"""Training of ``unit-hifigan``: log-mels first, then discriminators too; durations beside.

The defaults are a small generator that a CPU can train; ``channels=512`` with
``discriminator_channels=32`` is the paper's V1.

Source:
    Kong et al. 2020 (HiFi-GAN), arXiv:2010.05646; Polyak et al. 2021 (units),
    arXiv:2104.00355; Lee et al. 2022 (durations), arXiv:2107.05604.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechlm.config import build
from speechlm.errors import ConfigError, PluginError
from speechlm.protocols import AudioTokenizer, Need, SegmentBatch
from speechlm.settings import at_least
from speechlm.training.adversarial import Discriminators, MelLoss, adversarial_losses
from speechlm.units import collapse_repeats
from speechlm_tokenizers.codec_loading import fold_weight_norm
from speechlm_vocoders.hifigan_model import HiFiGAN, HiFiGANConfig
from speechlm_vocoders.unit_hifigan import (
    BLOCK,
    UnitHiFiGAN,
    UnitHiFiGANConfig,
    codebook_sizes,
    filled,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitHiFiGANOptions:
    """The vocoder's options when it is trained, ``vocoder.options`` of a run."""

    sample_rate: int | None = None
    """Of the sound, Hz; None for the tokenizer's."""
    embedding_dim: int = 128
    """Width of the units' embeddings."""
    channels: int = 128
    """Before the first upsampling; each halves them."""
    upsample_rates: tuple[int, ...] | None = None
    """Their product is the samples a unit; None for factors of at most 5, or 8 where those
    would be many."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    speaker_dim: int = 0
    """Length of speaker embeddings to train with, 256 for the default ones; 0 for one voice."""
    duration_dim: int = 128
    """Width of the duration predictor; 0 for none."""
    duration_dropout: float = 0.5
    predict_durations: bool = False
    """What the trained vocoder does with units that have no durations: see its card."""
    block: int = BLOCK
    """Frames that the trained vocoder renders at once."""
    adversarial_from: int = 1000
    """Batches after which the discriminators come in; until then log-mels alone."""
    discriminator_channels: int = 4
    """Of their narrowest layer, 32 in the paper."""
    discriminator_rate: float = 0.4
    """Their learning rate, of ``train.learning_rate``."""
    mel_weight: float = 45.0
    feature_weight: float = 2.0
    """Of feature matching."""
    duration_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("adversarial_from", "speaker_dim", "duration_dim"):
            at_least(0, name, getattr(self, name))
        at_least(1, "discriminator_channels", self.discriminator_channels)
        for name in ("discriminator_rate", "mel_weight", "feature_weight", "duration_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.duration_dropout < 1:
            raise ConfigError(
                f"duration_dropout must be at least 0 and below 1, got {self.duration_dropout}"
            )


class UnitHiFiGANTraining(nn.Module):
    """A ``unit-hifigan`` in training, see :class:`speechlm.protocols.PartTraining`."""

    whole = False

    def __init__(self, config: UnitHiFiGANConfig, options: UnitHiFiGANOptions) -> None:
        super().__init__()
        self.config = config
        self.options = options
        self.sample_rate = config.sample_rate
        self.hop_length = config.model.hop_length
        needs: set[Need] = {"units"}
        if config.model.speaker_dim:
            needs.add("speaker")
        self.needs = frozenset(needs)
        self.learning_rates = {r"^discriminators\.": options.discriminator_rate}
        self.generator = HiFiGAN(config.model, options.duration_dropout)
        rendering = (self.generator.first, self.generator.levels, self.generator.last)
        for module in [module for each in rendering for module in each.modules()]:
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                weight_norm(module)
        self.discriminators = Discriminators(channels=options.discriminator_channels)
        self.mel_loss = MelLoss(config.sample_rate)
        self.num_voices = nn.Buffer(torch.zeros(()))
        """How many the generator's mean voice is the mean of."""

    @classmethod
    def begin(cls, tokenizer: AudioTokenizer, options: Mapping[str, Any], seed: int) -> Self:
        """Make one for a tokenizer, its weights drawn by ``seed``.

        Raises:
            ConfigError: An option is not known or does not fit the tokenizer.
            PluginError: The tokenizer's units do not last one frame each.
        """
        chosen = build(UnitHiFiGANOptions, options, "vocoder.options")
        if getattr(tokenizer, "variable_rate", False):
            raise PluginError(
                f"units of {tokenizer.fingerprint!r} do not last one frame each: train the "
                "vocoder for the tokenizer below it"
            )
        sample_rate = chosen.sample_rate or tokenizer.sample_rate
        hop, rest = divmod(tokenizer.hop_length * sample_rate, tokenizer.sample_rate)
        if rest or not hop:
            raise ConfigError(
                f"vocoder.options.sample_rate ({sample_rate}) must give whole samples a unit at "
                f"{tokenizer.frame_rate:g} Hz"
            )
        rates = chosen.upsample_rates or _factors(hop)
        sizes = codebook_sizes(tokenizer)
        model = HiFiGANConfig(
            num_units=sizes[0],
            side_sizes=sizes[1:],
            embedding_dim=chosen.embedding_dim,
            condition_dim=chosen.embedding_dim,
            speaker_dim=chosen.speaker_dim,
            upsample_rates=rates,
            # Even rates twice themselves, odd ones the next odd: as published.
            upsample_kernel_sizes=tuple(2 * rate + rate % 2 for rate in rates),
            channels=chosen.channels,
            resblock_kernel_sizes=chosen.resblock_kernel_sizes,
            resblock_dilation_sizes=chosen.resblock_dilation_sizes,
            duration_dim=chosen.duration_dim,
        )
        if model.hop_length != hop:
            raise ConfigError(
                f"vocoder.options.upsample_rates must have the product {hop}, the samples a unit, "
                f"got {list(rates)}"
            )
        config = UnitHiFiGANConfig(
            tokenizer_fingerprint=tokenizer.fingerprint,
            sample_rate=sample_rate,
            model=model,
            predict_durations=chosen.predict_durations,
            block=chosen.block,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, chosen)

    def forward(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Give a step's loss, see :class:`speechlm.protocols.PartTraining`."""
        if batch.speakers is not None and self.config.model.speaker_dim:
            self._hear_voices(batch.speakers)
        real, fake = self._waves(batch)
        terms = {"mel": self.mel_loss(real, fake)}
        loss = self.options.mel_weight * terms["mel"]
        if self.config.model.duration_dim:
            terms["duration"] = self._duration_loss(batch)
            loss = loss + self.options.duration_weight * terms["duration"]
        if batch.number >= self.options.adversarial_from:
            play = adversarial_losses(self.discriminators, real, fake)
            terms["generator"] = play.generator
            terms["features"] = play.features
            terms["discriminators"] = play.discriminators
            loss = loss + play.generator + self.options.feature_weight * play.features
            loss = loss + play.discriminators
        return loss, terms

    def measure(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """Give what validation reports; ``loss`` is the distance between log-mels."""
        terms = {"loss": self.mel_loss(*self._waves(batch))}
        if self.config.model.duration_dim:
            terms["duration"] = self._duration_loss(batch)
        return terms

    def part(self) -> UnitHiFiGAN:
        """The vocoder with the weights of this moment, on the CPU."""
        state = {name: t.detach().cpu() for name, t in self.generator.state_dict().items()}
        model = filled(self.config.model, fold_weight_norm(state), "what was trained")
        return UnitHiFiGAN(self.config, model)

    def _waves(self, batch: SegmentBatch) -> tuple[Tensor, Tensor]:
        """What was said and what the generator makes of its units, float32 [B, T] each."""
        assert batch.units is not None
        speakers = batch.speakers if self.config.model.speaker_dim else None
        fake = self.generator(self.generator.embed(batch.units, speakers))
        fake = fake[:, : batch.waves.shape[1]]
        places = torch.arange(fake.shape[1], device=fake.device)
        # What stands beyond a recording's end is nobody's to render.
        return batch.waves, fake * (places < batch.lengths[:, None])

    def _duration_loss(self, batch: SegmentBatch) -> Tensor:
        """Squared error of log(1 + frames), over the runs that no segment's end cuts."""
        assert batch.units is not None
        assert self.generator.durations is not None
        frames = -(-batch.lengths // self.hop_length)
        runs = [
            collapse_repeats(codes[:, :size])
            for codes, size in zip(batch.units, frames.tolist(), strict=True)
        ]
        longest = max(codes.shape[1] for codes, _ in runs)
        embedding = self.generator.embeddings[0]
        # Behind a row's last unit zeros stand, as behind a whole recording's.
        embedded = torch.stack(
            [F.pad(embedding(codes[0]).T, (0, longest - codes.shape[1])) for codes, _ in runs]
        )
        logs: Tensor = self.generator.durations(embedded)
        predicted, expected = [], []
        for row, (_, durations) in zip(logs, runs, strict=True):
            predicted.append(row[1 : len(durations) - 1])
            expected.append(durations[1:-1].float().log1p())
        if not any(map(len, expected)):
            return 0.0 * logs.sum()
        return F.mse_loss(torch.cat(predicted), torch.cat(expected))

    @torch.no_grad()
    def _hear_voices(self, speakers: Tensor) -> None:
        """Let them into the mean voice, which renders where none is asked for."""
        if self.training:
            self.num_voices.add_(len(speakers))
            mean = self.generator.mean_speaker
            mean.add_((speakers - mean).sum(dim=0) / self.num_voices)


def _factors(hop: int) -> tuple[int, ...]:
    """Upsampling rates whose product is ``hop``, the largest first."""
    for largest in ((5, 4), (8, 5, 4)):
        rates, left = [], hop
        for rate in (*largest, 3, 2, 7, 11):
            while left % rate == 0:
                rates.append(rate)
                left //= rate
        if len(rates) <= 5:
            break
    if left > 1 or not rates:
        raise ConfigError(
            f"{hop} samples a unit have no factors of at most 11: choose another "
            "vocoder.options.sample_rate, or give vocoder.options.upsample_rates"
        )
    return tuple(sorted(rates, reverse=True))
