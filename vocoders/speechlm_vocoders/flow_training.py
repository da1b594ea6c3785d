"""Training of ``unit-flow``: the flow to mels, and a vocoder of mels beside it.

Each segment is cut into chunks as a stream cuts an utterance. The mels before a chunk are the
recording's, with some noise upon them, since those of a stream will not be as clean. The vocoder
learns from the recording's mels too, so both train at once and neither waits for the other.

Source:
    Lipman et al. 2022, arXiv:2210.02747, the path of optimal transport.
"""

from __future__ import annotations

import math
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
from speechlm.training.adversarial import MelLoss
from speechlm_vocoders.flow_model import FlowConfig, FlowModel
from speechlm_vocoders.mel_vocoder import (
    LogMels,
    MelConfig,
    MelHiFiGAN,
    MelVocos,
    read_speecht5_hifigan,
)
from speechlm_vocoders.unit_flow import UnitFlow, UnitFlowConfig
from speechlm_vocoders.vocos_model import VocosModelConfig
from speechlm_vocoders.vocos_training import embed_alike, nearest_divisor, render_like

MEL_S, WINDOW_S = 0.01, 0.064
"""Of own mels: from one frame to the next, as nearly as can be, and what each sees."""
CONTEXT_S, BLOCK_S, LOOKAHEAD_S = 0.32, 0.32, 0.08
VOCOS_LOOKAHEAD = 5
"""Frames of mels that the vocoder beside knows beyond the one that it renders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitFlowOptions:
    """The vocoder's options when it is trained, ``vocoder.options`` of a run."""

    dim: int = 192
    """Features of a frame."""
    num_layers: int = 4
    num_heads: int = 4
    ffn_factor: int = 3
    """Width of a layer's inner part, in ``dim``."""
    kernel: int = 7
    """Frames of mels that a layer's convolution sees."""
    context: int | None = None
    """Units before a chunk whose mels the network sees; None for 0.32 s."""
    block: int | None = None
    """Units of a chunk; None for 0.32 s. Fewer come sooner, more take less time in all."""
    lookahead: int | None = None
    """Units known beyond a chunk; None for 80 ms."""
    steps: int = 6
    """From noise to mels, when rendering."""
    guidance: float = 0.7
    """How much to exaggerate what units and voice say, when rendering; 0 takes half the time."""
    untold: float = 0.2
    """Share of chunks that are trained without units, voice and context, for guidance."""
    context_noise: float = 0.3
    """Most noise upon the mels before a chunk, in standard deviations of speech."""
    speaker_dim: int = 0
    """Length of the speaker embeddings to train with, 256 for the default ones; 0 for none."""
    mel_vocoder: str | None = None
    """A folder or hub id of a SpeechT5HifiGan of transformers; None to train a Vocos beside."""
    vocos_dim: int = 192
    vocos_layers: int = 4
    pitch_weight: float = 0.5
    """Of the distance of log pitches in the training of the Vocos."""

    def __post_init__(self) -> None:
        at_least(1, "steps", self.steps)
        if not 0 <= self.untold < 1:
            raise ConfigError(f"untold must be at least 0 and below 1, got {self.untold}")
        if self.guidance and not self.untold:
            raise ConfigError("guidance needs chunks trained untold; set untold above 0")
        for name in ("guidance", "context_noise", "pitch_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")


class UnitFlowTraining(nn.Module):
    """A ``unit-flow`` in training, see :class:`speechlm.protocols.PartTraining`."""

    whole = False
    heard: Tensor
    """Segments that the mean voice is of, int64 []; the first batch's give the mels' scale."""

    def __init__(
        self, config: UnitFlowConfig, options: UnitFlowOptions, hifigan: MelHiFiGAN | None
    ) -> None:
        super().__init__()
        self.config, self.options = config, options
        self.sample_rate, self.hop_length = config.mels.sample_rate, config.flow.hop_length
        needs: set[Need] = {"units"}
        if config.flow.speaker_dim:
            needs.add("speaker")
        self.needs = frozenset(needs)
        self.learning_rates: dict[str, float] = {}
        self.flow = FlowModel(config.flow)
        self.log_mels = LogMels(config.mels)
        self.vocoder: MelVocos | None = None
        self.mel_loss: MelLoss | None = None
        if config.vocos is not None:
            self.vocoder = MelVocos(config.mels, config.vocos)
            self.mel_loss = MelLoss(self.sample_rate)
        # What does not learn is neither optimised nor kept in checkpoints.
        self._read = (hifigan,)
        self.register_buffer("heard", torch.zeros((), dtype=torch.int64))

    @classmethod
    def begin(cls, tokenizer: AudioTokenizer, options: Mapping[str, Any], seed: int) -> Self:
        """Make one for a tokenizer, its weights drawn by ``seed``.

        Raises:
            ConfigError: An option is not known or does not fit the tokenizer.
            CheckpointError: ``mel_vocoder`` cannot be read.
            PluginError: The tokenizer's units do not last one frame each.
        """
        chosen = build(UnitFlowOptions, options, "vocoder.options")
        if getattr(tokenizer, "variable_rate", False):
            raise PluginError(
                f"units of {tokenizer.fingerprint!r} do not last one frame each: train the "
                "vocoder for the tokenizer below it"
            )
        hifigan = None if chosen.mel_vocoder is None else read_speecht5_hifigan(chosen.mel_vocoder)
        config = _config_for(tokenizer, chosen, hifigan)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            training = cls(config, chosen, hifigan)
            embed_alike(training.flow.embeddings, tokenizer)
        return training

    def forward(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Give a step's loss, see :class:`speechlm.protocols.PartTraining`."""
        self._hear(batch)
        return self._losses(batch, None)

    def measure(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """Give what validation reports; ``loss`` is what is trained on."""
        loss, terms = self._losses(batch, torch.Generator().manual_seed(0))
        return {"loss": loss, **terms}

    def part(self) -> UnitFlow:
        """The vocoder with the weights of this moment, on the CPU."""
        vocoder = self.vocoder or self._read[0]
        assert vocoder is not None
        tensors = {
            f"{prefix}.{name}": tensor.detach().cpu().clone()
            for prefix, module in (("flow", self.flow), ("vocoder", vocoder))
            for name, tensor in module.state_dict().items()
        }
        return UnitFlow(self.config, tensors)

    def _losses(
        self, batch: SegmentBatch, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both losses, at random or by a generator."""
        assert batch.units is not None
        num_samples = batch.units.shape[2] * self.hop_length
        inside = torch.arange(num_samples, device=batch.waves.device) < batch.lengths[:, None]
        real = F.pad(batch.waves, (0, num_samples - batch.waves.shape[1])) * inside
        codes = torch.where(inside[:, None, :: self.hop_length], batch.units, -1)
        mels = self.log_mels(real)
        speakers = batch.speakers if self.config.flow.speaker_dim else None
        terms = {"flow": self._flow_loss(mels, codes, speakers, generator)}
        loss = terms["flow"]
        if self.vocoder is not None and self.mel_loss is not None:
            silence = math.log10(self.config.mels.floor)
            padded = F.pad(mels, (0, 0, 0, self.vocoder.lookahead), value=silence)
            size = padded.shape[1] * self.config.mels.hop_length
            noise = _normal((len(real), size), generator, real.device)
            fake, terms["pitch"] = render_like(
                self.vocoder.network, self.vocoder.scaled(padded), noise, real
            )
            terms["mel"] = self.mel_loss(real, fake * inside)
            loss = loss + terms["mel"] + self.options.pitch_weight * terms["pitch"]
        return loss, terms

    def _flow_loss(
        self,
        mels: Tensor,
        codes: Tensor,
        speakers: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Mean squared error of the direction from noise to each chunk's mels, float32 []."""
        shape, device = self.config.flow, mels.device
        context, block = self.flow.context_frames, self.flow.block_frames
        mels = self.flow.scaled(mels)
        # Chunks begin anywhere, so that what stands before them is of any length.
        begin = int(torch.randint(shape.block // shape.granularity, (), generator=generator))
        begin *= shape.granularity
        begin = min(begin, max(0, codes.shape[2] - shape.block))
        count = max(1, (codes.shape[2] - begin) // shape.block)
        window = shape.context + shape.block + shape.lookahead
        codes = F.pad(codes, (shape.context, window), value=-1)
        padded = F.pad(mels, (0, 0, context, context + block))
        places = torch.arange(mels.shape[1] + 2 * context + block, device=device) - context
        windows, targets, before, absent, inside = [], [], [], [], []
        for start in range(begin, begin + count * shape.block, shape.block):
            first = shape.frames(start)
            windows.append(codes[:, :, start : start + window])
            before.append(padded[:, first : first + context])
            absent.append((places[first : first + context] < 0).expand(len(mels), -1))
            targets.append(padded[:, first + context : first + context + block])
            said = windows[-1][:, 0, shape.context : shape.context + shape.block] >= 0
            frames = self.flow.unit_of_frame[context : context + block] - shape.context
            inside.append(said[:, frames])
        target, known = torch.cat(targets), torch.cat(before)
        level = _uniform(len(known), generator, device) * self.options.context_noise
        known = known + level[:, None, None] * _normal(known.shape, generator, device)
        time = 1 - torch.cos(0.5 * math.pi * _uniform(len(known), generator, device))
        noise = _normal(target.shape, generator, device)
        untold = _uniform(len(known), generator, device) < self.options.untold
        direction = self.flow(
            torch.lerp(noise, target, time[:, None, None]),
            time,
            known,
            torch.cat(absent),
            torch.cat(windows),
            None if speakers is None else speakers.repeat(count, 1),
            untold,
        )
        mask = torch.cat(inside)
        errors = (direction - (target - noise)).square().mean(dim=2) * mask
        loss: Tensor = errors.sum() / mask.sum().clamp(min=1)
        return loss

    @torch.no_grad()
    def _hear(self, batch: SegmentBatch) -> None:
        """Take the mels' scale from the first batch, and every voice into the mean one."""
        if not self.training:
            return
        if self.heard == 0:
            mels = self.log_mels(batch.waves)
            places = torch.arange(mels.shape[1], device=mels.device) * self.config.mels.hop_length
            spoken = mels[places < batch.lengths[:, None]]
            self.flow.mean.copy_(spoken.mean(dim=0))
            self.flow.deviation.copy_(spoken.std(dim=0).clamp(min=0.1))
        self.heard.add_(len(batch.waves))
        if batch.speakers is not None and self.config.flow.speaker_dim:
            mean = self.flow.mean_speaker
            mean.add_((batch.speakers - mean).sum(dim=0) / self.heard)


def _normal(
    shape: tuple[int, ...] | torch.Size, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    if generator is None:
        return torch.randn(shape, device=device)
    return torch.randn(shape, generator=generator).to(device)


def _uniform(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    if generator is None:
        return torch.rand(count, device=device)
    return torch.rand(count, generator=generator).to(device)


def _config_for(
    tokenizer: AudioTokenizer, options: UnitFlowOptions, hifigan: MelHiFiGAN | None
) -> UnitFlowConfig:
    rate = tokenizer.sample_rate if hifigan is None else hifigan.mels.sample_rate
    hop, rest = divmod(tokenizer.hop_length * rate, tokenizer.sample_rate)
    if rest or not hop:
        raise ConfigError(
            f"vocoder.options.mel_vocoder gives {rate} Hz, at which units of "
            f"{tokenizer.frame_rate:g} Hz are no whole number of samples; choose another"
        )
    if hifigan is None:
        mel_hop = nearest_divisor(hop, MEL_S * rate)
        window = 2 ** round(math.log2(WINDOW_S * rate))
        mels = MelConfig(sample_rate=rate, hop_length=mel_hop, window=window)
    else:
        mels = hifigan.mels
    step = mels.hop_length // math.gcd(hop, mels.hop_length)

    def units(seconds: float) -> int:
        return step * max(1, round(seconds * rate / hop / step))

    sizes = (tokenizer.vocab_size,) * tokenizer.num_codebooks
    flow = FlowConfig(
        codebook_sizes=tuple(getattr(tokenizer, "codebook_sizes", sizes)),
        num_mels=mels.num_mels,
        hop_length=hop,
        mel_hop=mels.hop_length,
        context=options.context or units(CONTEXT_S),
        block=options.block or units(BLOCK_S),
        lookahead=units(LOOKAHEAD_S) if options.lookahead is None else options.lookahead,
        dim=options.dim,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        ffn_factor=options.ffn_factor,
        kernel=options.kernel,
        speaker_dim=options.speaker_dim,
    )
    vocos = VocosModelConfig(
        num_features=mels.num_mels,
        sample_rate=rate,
        hop_length=mels.hop_length,
        spectral_hop=mels.hop_length,
        fft_size=4 * mels.hop_length,
        dim=options.vocos_dim,
        num_unit_layers=1,
        num_layers=options.vocos_layers,
        ffn_factor=3,
        kernel=7,
        lookahead=VOCOS_LOOKAHEAD,
        speaker_dim=0,
    )
    return UnitFlowConfig(
        tokenizer_fingerprint=tokenizer.fingerprint,
        flow=flow,
        mels=mels,
        vocos=vocos if hifigan is None else None,
        hifigan=None if hifigan is None else hifigan.config,
        steps=options.steps,
        guidance=options.guidance,
    )
