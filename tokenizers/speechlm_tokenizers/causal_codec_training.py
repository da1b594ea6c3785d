"""How ``causal-codec`` learns: to sound like what it heard, and to name it as a teacher does.

The loss is a sum of

* the distance between log-mels at several resolutions, which alone makes speech intelligible;
* the distance between log pitches: sound is rendered at the pitch that the recording was measured
  to have, and the decoder learns to predict it beside, so both have harmonics in the same places;
* commitment: how far vectors are from what the codes stand for;
* from step ``adversarial_from`` on, what discriminators think, and what they see on the way;
* with a teacher, how far the first codebook is from another tokenizer's units: SpeechTokenizer's
  loss where that codebook is the quantizer's first level, Mimi's where it stands beside the rest.

A segment begins without the past that the sound before it would have left, so the first frames
count in no loss. What lies beyond a recording's end is silence, and is learnt as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.audio import resample
from speechlm.config import build
from speechlm.errors import ConfigError, PluginError
from speechlm.plugins import load_tokenizer
from speechlm.protocols import AudioTokenizer, Need, SegmentBatch
from speechlm.settings import at_least
from speechlm.training.adversarial import Discriminators, MelLoss, adversarial_losses
from speechlm_tokenizers.causal_codec_model import (
    CausalCodecConfig,
    CausalCodecModel,
)
from speechlm_tokenizers.quantizers import (
    CodebookLearner,
    Quantized,
    ResidualVQ,
    add_up,
    perplexity,
    used_levels,
)
from speechlm_vocoders.vocos_training import render_like

if TYPE_CHECKING:
    from speechlm_tokenizers.causal_codec import CausalCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalCodecTrainingConfig(CausalCodecConfig):
    """What to train and how, ``tokenizer.options`` of a run."""

    quantizer_dropout: float = 0.25
    """Share of segments that must do with fewer codebooks, so that the first few work alone."""
    commitment: float = 0.25
    """Weight of how far vectors are from what their codes stand for."""
    codebook_warmup: int = 50
    """Steps before k-means finds the first codebooks; until then nothing is quantized."""
    codebook_decay: float = 0.95
    """How much of a codebook's moving averages stays at each step."""
    context_frames: int = 5
    """Frames at the beginning of a segment that no loss is taken of."""
    gain_db: float = 6.0
    """Segments are made louder or quieter by up to as much, so that levels of all kinds are met."""
    loss_floor: float = 3e-4
    """Standard deviation of the noise that is added to both waves before their log-mels are
    compared: what is quieter is not heard, and must not weigh as much as what is."""
    loss_mels: int = 100
    """Mel bands of the loss' longest window; shorter ones have fewer in proportion."""
    teacher: Path | None = None
    """Folder of the tokenizer whose units the first codebook learns, where ``semantic`` says."""
    semantic_weight: float = 1.0
    """Weight of how far the first codebook is from the teacher's units."""
    pitch_weight: float = 0.5
    """Weight of the distance between log pitches."""
    adversarial_from: int | None = None
    """Step from which discriminators are trained and listened to; never where not given."""
    adversarial_weight: float = 0.05
    """Weight of what the discriminators think."""
    feature_weight: float = 0.1
    """Weight of what the discriminators see on the way (feature matching)."""
    adversarial_segment_s: float = 0.5
    """How much of each segment the discriminators hear, s."""
    discriminator_channels: int = 16
    """Width of the discriminators' narrowest layer; 32 is HiFi-GAN's."""
    discriminator_periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """After how many samples each multi-period discriminator folds the wave."""
    discriminator_scales: int = 1
    """Multi-scale discriminators."""

    def __post_init__(self) -> None:
        CausalCodecConfig.__post_init__(self)
        for name in ("loss_mels", "discriminator_channels"):
            at_least(1, name, getattr(self, name))
        for name in ("codebook_warmup", "context_frames", "discriminator_scales"):
            at_least(0, name, getattr(self, name))
        if self.gain_db < 0 or self.loss_floor < 0:
            raise ConfigError(
                "gain_db and loss_floor must be at least 0, "
                f"got {self.gain_db:g} and {self.loss_floor:g}"
            )
        for name in ("quantizer_dropout", "codebook_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be within 0..1, got {getattr(self, name)}")
        if (self.semantic == "none") != (self.teacher is None):
            raise ConfigError(
                "expected a teacher where the first codebook learns from one and only there, got "
                f"semantic {self.semantic!r} and teacher {_named(self.teacher)}; set both of "
                "tokenizer.options.semantic and tokenizer.options.teacher, or neither"
            )
        if self.adversarial_from is not None:
            at_least(0, "adversarial_from", self.adversarial_from)
            if not self.discriminator_periods and not self.discriminator_scales:
                raise ConfigError(
                    "expected discriminators where adversarial_from is given, got no "
                    "discriminator_periods and no discriminator_scales"
                )

    def model(self) -> CausalCodecConfig:
        """The part of it that says what the codec is."""
        return CausalCodecConfig(
            **{each.name: getattr(self, each.name) for each in fields(CausalCodecConfig)}
        )


class CausalCodecTraining(nn.Module):
    """A ``causal-codec`` in training; see :class:`speechlm.protocols.PartTraining`."""

    needs: frozenset[Need] = frozenset()
    whole = False
    learning_rates: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        kind: type[CausalCodec],
        config: CausalCodecTrainingConfig,
        teacher: Teacher | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.hop_length = config.hop_length
        self._kind, self._teacher, self._seed = kind, teacher, seed
        self.model = CausalCodecModel(config)
        self._learners = nn.ModuleList(
            CodebookLearner(part, decay=config.codebook_decay, warmup=config.codebook_warmup)
            for part in self.model.quantizers.parts
            if isinstance(part, ResidualVQ)
        )
        self.mel_loss = MelLoss(config.sample_rate, config.loss_mels)
        self.lesson = None
        if teacher is not None:
            self.lesson = Lesson(config.code_dim, teacher.dim, split=config.semantic == "split")
        self.discriminators = None
        if config.adversarial_from is not None:
            self.discriminators = Discriminators(
                periods=config.discriminator_periods,
                num_scales=config.discriminator_scales,
                channels=config.discriminator_channels,
            )

    def forward(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`speechlm.protocols.PartTraining`."""
        config, quantizers = self.config, self.model.quantizers
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + batch.number)
        waves = self._whole_frames(self._at_another_level(batch.waves, generator))
        used = used_levels(
            config.num_codebooks, len(waves), config.quantizer_dropout, generator
        ).to(waves.device)
        vectors = quantizers.project(self.model.encoder(waves))
        learnt = self._learnt()
        ready = [
            learner.prepare(part, some, generator)
            for (learner, part), some in zip(learnt, vectors, strict=False)
        ]
        terms: dict[str, Tensor] = {}
        if all(ready):
            done = quantizers.quantize(vectors, used)
            for (learner, part), some in zip(learnt, done, strict=False):
                learner.update(part, some, generator)
            vectors = [some.vectors for some in done]
            terms["commitment"] = config.commitment * add_up([some.loss for some in done])
            terms |= self._lesson_of(batch, done)
        sound, pitch = self._sound(quantizers.merge(vectors, used), waves, generator)
        terms["pitch"] = config.pitch_weight * pitch
        real, fake = self._heard(waves, sound)
        terms["mel"] = self._mel_distance(real, fake, generator)
        if config.adversarial_from is not None and batch.number >= config.adversarial_from:
            terms |= self._adversarial(real, fake, generator)
        return add_up(list(terms.values())), {name: term.detach() for name, term in terms.items()}

    def measure(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """See :class:`speechlm.protocols.PartTraining`.

        ``loss`` is the distance between log-mels with all codebooks, ``mel_first`` with the
        first alone; ``perplexity`` is the codebooks' mean.
        """
        config, quantizers = self.config, self.model.quantizers
        waves = self._whole_frames(batch.waves)
        vectors = quantizers.project(self.model.encoder(waves))
        found: dict[str, Tensor] = {}
        for name, count in (("mel_first", 1), ("loss", config.num_codebooks)):
            used = torch.full((len(waves),), count, device=waves.device)
            done = quantizers.quantize(vectors, used)
            generator = torch.Generator().manual_seed(0)
            hidden = quantizers.merge([some.vectors for some in done], used)
            sound, found["pitch"] = self._sound(hidden, waves, generator)
            found[name] = self._mel_distance(*self._heard(waves, sound), generator)
        codes = torch.cat([some.codes for some in done], dim=1)
        found["perplexity"] = perplexity(codes, config.vocab_size).mean()
        return found | self._lesson_of(batch, done)

    def part(self) -> CausalCodec:
        """The tokenizer with the weights of this moment.

        Raises:
            ConfigError: Training ended before there were codebooks.
        """
        for learner, _ in self._learnt():
            learner.require_start("codebook_warmup")
        state = self.model.state_dict()
        # Copies: what is saved must not go on learning.
        tensors = {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}
        return self._kind(self.config.model(), tensors)

    def _learnt(self) -> list[tuple[CodebookLearner, ResidualVQ]]:
        """The quantizers with codebooks, and what moves these; none where numbers are rounded."""
        learners = cast("Sequence[CodebookLearner]", self._learners)
        parts = [part for part in self.model.quantizers.parts if isinstance(part, ResidualVQ)]
        return list(zip(learners, parts, strict=True))

    def _whole_frames(self, waves: Tensor) -> Tensor:
        return F.pad(waves, (0, -waves.shape[1] % self.hop_length))

    def _at_another_level(self, waves: Tensor, generator: torch.Generator) -> Tensor:
        """Each row as much louder or quieter as is drawn, but not so that it clips."""
        drawn = (2 * torch.rand(len(waves), 1, generator=generator) - 1) * self.config.gain_db
        peaks = waves.abs().amax(dim=1, keepdim=True).clamp(min=1e-5)
        gains = (10 ** (drawn / 20)).to(waves)
        return waves * torch.minimum(gains, 1 / peaks).where(gains > 1, gains)

    def _mel_distance(self, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
        """How far two waves' log-mels are apart, where either can be heard; float32 []."""
        noise = self.config.loss_floor * torch.randn(real.shape, generator=generator).to(real)
        distance: Tensor = self.mel_loss(real + noise, fake + noise)
        return distance

    def _sound(
        self, hidden: Tensor, real: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Decode float [B, F, dim] at the pitch of recordings float32 [B, F * hop_length].

        Returns:
            float32 [B, F * hop_length], as early as it was heard, and how far the pitch predicted
            is from that measured, float32 [].
        """
        hidden = F.pad(hidden, (0, 0, 0, self.config.lookahead))
        noise = torch.randn(len(real), hidden.shape[1] * self.hop_length, generator=generator)
        return render_like(self.model.decoder, hidden, noise.to(real), real)

    def _heard(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """What of two waves counts: not the beginning, unless there is nothing else."""
        skipped = min(self.config.context_frames * self.hop_length, real.shape[1] // 2)
        return real[:, skipped:], fake[:, skipped:]

    def _lesson_of(self, batch: SegmentBatch, done: Sequence[Quantized]) -> dict[str, Tensor]:
        """What the first codebook has yet to learn from the teacher, if there is one."""
        if self.lesson is None or self._teacher is None:
            return {}
        first = done[0].first
        targets, known = self._teacher(batch, first.shape[1], self.config)
        known[:, : min(self.config.context_frames, first.shape[1] // 2)] = False
        return {"semantic": self.config.semantic_weight * self.lesson(first, targets, known)}

    def _adversarial(
        self, real: Tensor, fake: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        config, length = self.config, real.shape[1]
        assert self.discriminators is not None
        size = min(length, round(config.adversarial_segment_s * config.sample_rate))
        start = int(torch.randint(length - size + 1, (), generator=generator))
        some = slice(start, start + size)
        found = adversarial_losses(self.discriminators, real[:, some], fake[:, some])
        return {
            "generator": config.adversarial_weight * found.generator,
            "features": config.feature_weight * found.features,
            "discriminators": found.discriminators,
        }


class Teacher:
    """Another tokenizer, which is asked what it hears in a segment."""

    def __init__(self, tokenizer: AudioTokenizer) -> None:
        """Begin.

        Args:
            tokenizer: One with ``unit_features``, float [V, D]: what its units sound like. Where
                it also says what it hears before it chooses units, by ``features(wave)``, float32
                [T] to [F, D], that is what it teaches.

        Raises:
            PluginError: It does not say what its units sound like.
        """
        features: Tensor | None = getattr(tokenizer, "unit_features", None)
        if features is None:
            raise PluginError(
                "expected a teacher that knows what its units sound like (unit_features), "
                f"got {tokenizer.fingerprint!r}; one of 'logmel-kmeans' or 'ssl-kmeans' does"
            )
        self._tokenizer = tokenizer
        self._features = features.float()
        # What all units share would make all of them look alike.
        self._mean = self._features.mean(dim=0)
        self.dim = features.shape[1]

    @torch.no_grad()
    def __call__(
        self, batch: SegmentBatch, frames: int, config: CausalCodecConfig
    ) -> tuple[Tensor, Tensor]:
        """Say what it hears in segments.

        Args:
            batch: Waves at ``config.sample_rate``.
            frames: Frames of a segment, F; ``config`` says how long each is.

        Returns:
            What is heard in the middle of each frame, float32 [B, F, D], and whether there is
            anything, bool [B, F].
        """
        teacher, rate = self._tokenizer, config.sample_rate
        waves = resample(batch.waves.float().cpu(), rate, teacher.sample_rate)
        lengths = -(-batch.lengths.cpu() * teacher.sample_rate // rate)
        middles = (torch.arange(frames) + 0.5) * config.hop_length / rate
        places = (middles * teacher.frame_rate).long()
        targets = torch.zeros(len(waves), frames, self.dim)
        known = torch.zeros(len(waves), frames, dtype=torch.bool)
        for row, (wave, length) in enumerate(zip(waves, lengths.tolist(), strict=True)):
            heard = self._hear(wave[:length]) - self._mean
            known[row] = places < len(heard)
            targets[row, known[row]] = heard[places[known[row]]]
        return targets.to(batch.waves.device), known.to(batch.waves.device)

    def _hear(self, wave: Tensor) -> Tensor:
        """float32 [T] to [F, D] at the teacher's frame rate."""
        listen: Callable[[Tensor], Tensor] | None = getattr(self._tokenizer, "features", None)
        if listen is not None:
            return listen(wave).float().cpu()
        (units,) = self._tokenizer.encode(wave[None])
        return self._features[units.expand().codes[0]]


class Lesson(nn.Module):
    """How far the first codebook's vectors are from a teacher's, seen through one linear layer.

    Args:
        dim: Length of the vectors.
        teacher_dim: Length of the teacher's.
        split: Compare frame by frame (Mimi); else dimension by dimension, along time, which leaves
            the vectors more freedom (SpeechTokenizer).

    Source:
        Zhang et al. 2023 (SpeechTokenizer), arXiv:2308.16692; Défossez et al. 2024 (Mimi),
        arXiv:2410.00037.
    """

    def __init__(self, dim: int, teacher_dim: int, *, split: bool) -> None:
        super().__init__()
        self.project = nn.Linear(dim, teacher_dim)
        self._split = split

    def forward(self, vectors: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Compare.

        Args:
            vectors: float32 [B, F, D].
            targets: The teacher's, float32 [B, F, D'].
            known: Which of them count, bool [B, F].

        Returns:
            float32 [], at least 0.
        """
        seen = self.project(vectors).float()
        if self._split:
            distance = 1 - F.cosine_similarity(seen, targets, dim=2)
            return (distance * known).sum() / known.sum().clamp(min=1)
        mask = known[..., None]
        return -F.logsigmoid(F.cosine_similarity(seen * mask, targets * mask, dim=1)).mean()


def begin_training(
    kind: type[CausalCodec], options: Mapping[str, Any], seed: int
) -> CausalCodecTraining:
    """See :meth:`CausalCodec.training`."""
    config = build(CausalCodecTrainingConfig, options, "tokenizer.options")
    teacher = None if config.teacher is None else Teacher(load_tokenizer(config.teacher))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CausalCodecTraining(kind, config, teacher, seed)


def _named(teacher: Path | None) -> str:
    return "none" if teacher is None else str(teacher)
