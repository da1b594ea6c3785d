"""Training of ``unit-vocos``: log-mels and pitch, and discriminators where there is time.

The network renders at the pitch that the recording was measured to have and learns to predict
it beside, so that sound and recording have their harmonics in the same places. Then log-mels
alone teach it clear speech in minutes on a CPU, and that is the default. Discriminators, which
take away what is left of the buzz, want a GPU or hours: ``adversarial_from`` lets them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.config import build
from speechlm.errors import ConfigError, PluginError
from speechlm.protocols import AudioTokenizer, Need, SegmentBatch
from speechlm.settings import at_least
from speechlm.training.adversarial import Discriminators, MelLoss, adversarial_losses
from speechlm_vocoders.pitch import track_pitch
from speechlm_vocoders.unit_vocos import UnitVocos, UnitVocosConfig
from speechlm_vocoders.vocos_model import MIDDLE_PITCH, VocosModel, VocosModelConfig

SPECTRUM_S = 0.01
"""From one spectrum to the next where no ``spectral_hop`` is given, as nearly as can be, s."""
LOOKAHEAD_S, BLOCK_S = 0.08, 0.16


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitVocosOptions:
    """The vocoder's options when it is trained, ``vocoder.options`` of a run."""

    dim: int = 256
    """Features of a frame."""
    num_unit_layers: int = 3
    """ConvNeXt blocks at the units' rate, from which the pitch is predicted."""
    num_layers: int = 4
    """ConvNeXt blocks at the spectra's rate."""
    ffn_factor: int = 3
    """Width of a block's inner layer, in ``dim``."""
    kernel: int = 7
    """Frames that a block's convolution sees, the last of them the present one."""
    lookahead: int | None = None
    """Unit frames known beyond the one that is rendered; None for 80 ms."""
    block: int | None = None
    """Unit frames rendered at once; None for 160 ms. Fewer come sooner, more take less time."""
    spectral_hop: int | None = None
    """Samples from one spectrum to the next, a divisor of the samples of a unit; None for
    about 10 ms."""
    fft_size: int | None = None
    """Samples of a spectrum's window, a multiple of ``spectral_hop``; None for 4 of those."""
    speaker_dim: int = 0
    """Length of the speaker embeddings to train with, 256 for the default ones; 0 for none."""
    pitch_weight: float = 0.5
    """Of the distance of log pitches, where that of log-mels counts 1."""
    adversarial_from: int | None = None
    """Batches after which the discriminators come in; None for never."""
    adversarial_s: float = 0.25
    """What they hear of each segment, s. With the other defaults they then cost about as much
    as all else in a step."""
    adversarial_weight: float = 0.02
    feature_weight: float = 0.05
    """Of feature matching."""
    discriminator_channels: int = 4
    """Of their narrowest layer, 32 in HiFi-GAN."""
    discriminator_scales: int = 1
    """Discriminators of smoothed sound, beside those of periods; 3 in HiFi-GAN."""
    discriminator_rate: float = 0.4
    """Their learning rate, of ``train.learning_rate``."""

    def __post_init__(self) -> None:
        for name in ("lookahead", "block", "spectral_hop", "fft_size", "discriminator_channels"):
            if (value := getattr(self, name)) is not None:
                at_least(1, name, value)
        at_least(0, "discriminator_scales", self.discriminator_scales)
        if self.adversarial_from is not None:
            at_least(0, "adversarial_from", self.adversarial_from)
        if self.adversarial_s <= 0:
            raise ConfigError(f"adversarial_s must be above 0, got {self.adversarial_s}")
        weights = ("pitch_weight", "adversarial_weight", "feature_weight", "discriminator_rate")
        for name in weights:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")

    def config_for(self, tokenizer: AudioTokenizer) -> UnitVocosConfig:
        """The vocoder that these options make for a tokenizer.

        Raises:
            ConfigError: They do not fit it.
            PluginError: Its units do not last one frame each.
        """
        if getattr(tokenizer, "variable_rate", False):
            raise PluginError(
                f"units of {tokenizer.fingerprint!r} do not last one frame each: train the "
                "vocoder for the tokenizer below it"
            )
        hop, rate = tokenizer.hop_length, tokenizer.sample_rate
        spectral_hop = self.spectral_hop or nearest_divisor(hop, SPECTRUM_S * rate)
        sizes = (tokenizer.vocab_size,) * tokenizer.num_codebooks
        model = VocosModelConfig(
            codebook_sizes=tuple(getattr(tokenizer, "codebook_sizes", sizes)),
            sample_rate=rate,
            hop_length=hop,
            spectral_hop=spectral_hop,
            fft_size=self.fft_size or 4 * spectral_hop,
            dim=self.dim,
            num_unit_layers=self.num_unit_layers,
            num_layers=self.num_layers,
            ffn_factor=self.ffn_factor,
            kernel=self.kernel,
            lookahead=self.lookahead or max(1, round(LOOKAHEAD_S * rate / hop)),
            speaker_dim=self.speaker_dim,
        )
        return UnitVocosConfig(
            tokenizer_fingerprint=tokenizer.fingerprint,
            model=model,
            block=self.block or max(1, round(BLOCK_S * rate / hop)),
        )


class UnitVocosTraining(nn.Module):
    """A ``unit-vocos`` in training, see :class:`speechlm.protocols.PartTraining`."""

    whole = False
    num_voices: Tensor
    """How many embeddings the model's mean voice is the mean of, float32 []."""

    def __init__(self, config: UnitVocosConfig, options: UnitVocosOptions) -> None:
        super().__init__()
        self.config, self.options = config, options
        self.sample_rate, self.hop_length = config.model.sample_rate, config.model.hop_length
        needs: set[Need] = {"units"}
        if config.model.speaker_dim:
            needs.add("speaker")
        self.needs = frozenset(needs)
        self.learning_rates: dict[str, float] = {}
        self.generator = VocosModel(config.model)
        self.mel_loss = MelLoss(config.model.sample_rate)
        self.discriminators: Discriminators | None = None
        if options.adversarial_from is not None:
            self.discriminators = Discriminators(
                channels=options.discriminator_channels, num_scales=options.discriminator_scales
            )
            self.learning_rates[r"^discriminators\."] = options.discriminator_rate
        self.register_buffer("num_voices", torch.zeros(()))

    @classmethod
    def begin(cls, tokenizer: AudioTokenizer, options: Mapping[str, Any], seed: int) -> Self:
        """Make one for a tokenizer, its weights drawn by ``seed``.

        Raises:
            ConfigError: An option is not known or does not fit the tokenizer.
            PluginError: The tokenizer's units do not last one frame each.
        """
        chosen = build(UnitVocosOptions, options, "vocoder.options")
        config = chosen.config_for(tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            training = cls(config, chosen)
            embed_alike(training.generator.embeddings, tokenizer)
        return training

    def forward(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Give a step's loss, see :class:`speechlm.protocols.PartTraining`."""
        if batch.speakers is not None and self.config.model.speaker_dim:
            self._hear_voices(batch.speakers)
        noise = torch.randn(self._noise_shape(batch), device=batch.waves.device)
        real, fake, pitch = self._render(batch, noise)
        terms = {"mel": self.mel_loss(real, fake), "pitch": pitch}
        loss = terms["mel"] + self.options.pitch_weight * pitch
        start = self.options.adversarial_from
        if self.discriminators is not None and start is not None and batch.number >= start:
            play = adversarial_losses(self.discriminators, *self._pieces(real, fake))
            terms["generator"] = play.generator
            terms["features"] = play.features
            terms["discriminators"] = play.discriminators
            loss = loss + self.options.adversarial_weight * play.generator
            loss = loss + self.options.feature_weight * play.features + play.discriminators
        return loss, terms

    def measure(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """Give what validation reports; ``loss`` is the distance of log-mels."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self._noise_shape(batch), generator=generator)
        real, fake, pitch = self._render(batch, noise.to(batch.waves.device))
        return {"loss": self.mel_loss(real, fake), "pitch": pitch}

    def part(self) -> UnitVocos:
        """The vocoder with the weights of this moment, on the CPU."""
        state = self.generator.state_dict()
        return UnitVocos(self.config, {name: t.detach().cpu().clone() for name, t in state.items()})

    def _noise_shape(self, batch: SegmentBatch) -> tuple[int, int]:
        assert batch.units is not None
        frames = batch.units.shape[2] + self.config.model.lookahead
        return len(batch.waves), frames * self.hop_length

    def _render(self, batch: SegmentBatch, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What was said, what the network makes of it, float32 [B, T], and the pitch's loss.

        Nothing stands before a segment's first unit or behind its last one, as if it were an
        utterance. Of most segments neither is true, but so the network learns to begin and to
        end wherever an utterance does.
        """
        assert batch.units is not None
        shape, hop = self.config.model, self.hop_length
        num_samples = batch.units.shape[2] * hop
        inside = torch.arange(num_samples, device=noise.device) < batch.lengths[:, None]
        real = F.pad(batch.waves, (0, num_samples - batch.waves.shape[1])) * inside
        codes = torch.where(inside[:, None, ::hop], batch.units, -1)
        codes = F.pad(codes, (0, shape.lookahead), value=-1)
        speakers = batch.speakers if shape.speaker_dim else None
        fake, pitch_loss = render_like(self.generator, codes, noise, real, speakers)
        return real, fake * inside, pitch_loss

    def _pieces(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The same stretch of both, anywhere."""
        size = min(real.shape[1], round(self.options.adversarial_s * self.sample_rate))
        start = int(torch.randint(real.shape[1] - size + 1, ()))
        return real[:, start : start + size], fake[:, start : start + size]

    @torch.no_grad()
    def _hear_voices(self, speakers: Tensor) -> None:
        """Let them into the mean voice, which speaks where none is asked for."""
        if self.training:
            self.num_voices.add_(len(speakers))
            mean = self.generator.mean_speaker
            mean.add_((speakers - mean).sum(dim=0) / self.num_voices)


def render_like(
    model: VocosModel, input: Tensor, noise: Tensor, real: Tensor, speakers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Render at the pitch that recordings have.

    Args:
        model: Of which units or features of those recordings are rendered.
        input: What it takes, with ``lookahead`` frames beyond the end.
        noise: What it takes, for as many frames.
        real: The recordings, float32 [B, T].
        speakers: Their voices, where it takes any, float32 [B, D].

    Returns:
        float32 [B, T], and how far the predicted pitch is from the measured one, float32 [].
    """
    pitch, voiced = _measured_pitch(real, model.config)
    waves, predicted = model(input, noise, speakers, pitch)
    distance = ((predicted - pitch).abs() * voiced).sum() / voiced.sum().clamp(min=1)
    return waves[:, model.config.lookahead * model.config.hop_length :], distance


def _measured_pitch(waves: Tensor, shape: VocosModelConfig) -> tuple[Tensor, Tensor]:
    """Where each window of the model ends: log of Hz, and whether there is any."""
    pitch, voiced = track_pitch(waves, shape.sample_rate, shape.spectral_hop)
    pitch = torch.where(voiced.any(dim=1, keepdim=True), pitch, MIDDLE_PITCH)
    late = (shape.lookahead * shape.hop_length - shape.fft_size) // shape.spectral_hop
    last = (waves.shape[1] + shape.lookahead * shape.hop_length) // shape.spectral_hop
    places = torch.arange(last, device=waves.device) - late
    inside = (places >= 0) & (places < pitch.shape[1])
    places = places.clamp(0, pitch.shape[1] - 1)
    return pitch[:, places], voiced[:, places] & inside


@torch.no_grad()
def embed_alike(embeddings: nn.ModuleList, tokenizer: AudioTokenizer) -> None:
    """Begin with units that sound alike embedded alike, where the tokenizer knows which do.

    What is learned of one unit is then learned of its neighbours, many times sooner.

    Args:
        embeddings: A table a codebook, of one row more than there are units.
        tokenizer: Whose ``unit_features``, float [V, D], are those of its first codebook.
    """
    features = getattr(tokenizer, "unit_features", None)
    table = embeddings[0]
    assert isinstance(table, nn.Embedding)
    if not isinstance(features, Tensor) or len(features) + 1 != len(table.weight):
        return
    rows = features.float()
    rows = (rows - rows.mean(dim=0)) / rows.std(dim=0).clamp(min=1e-6)
    turn = torch.randn(rows.shape[1], table.embedding_dim) * rows.shape[1] ** -0.5
    table.weight[:-1] = rows @ turn * len(embeddings) ** -0.5


def nearest_divisor(number: int, wanted: float) -> int:
    """The divisor of ``number`` that is nearest to what is wanted."""
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    return min(divisors, key=lambda each: abs(each - wanted))
