"""``unit-flow``: units to log-mels by flow matching, and those to sound; exactly streamed.

Units leave open how they are said. A vocoder that is trained to be near the recording says it in
the mean of all ways; one that is trained to turn noise into one of them sounds alive, for more
computing. What the network sees and how it is steered, :mod:`speechlm_vocoders.flow_model` says,
and :mod:`speechlm_vocoders.flow_training` trains it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError, FingerprintError, InputError, PluginError
from speechlm.model.fast_linear import pack_linears
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.settings import at_least
from speechlm.units import Units
from speechlm_tokenizers.codec_loading import aligned, below, fill
from speechlm_vocoders.flow_model import FlowConfig, FlowModel, flow
from speechlm_vocoders.hifigan_model import HiFiGANConfig
from speechlm_vocoders.mel_vocoder import LogMels, MelConfig, MelHiFiGAN, MelVocoder, MelVocos
from speechlm_vocoders.vocos_model import VocosModelConfig

if TYPE_CHECKING:
    from speechlm_vocoders.flow_training import UnitFlowTraining

KIND = "unit-flow"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitFlowConfig:
    """A ``unit-flow`` and the tokenizer whose units it renders."""

    tokenizer_fingerprint: str
    flow: FlowConfig
    mels: MelConfig
    vocos: VocosModelConfig | None
    """Of the vocoder that renders mels, where it was trained beside."""
    hifigan: HiFiGANConfig | None
    """Of the vocoder that renders mels, where it was read."""
    steps: int
    """From noise to mels: more are better and slower."""
    guidance: float
    """How much to exaggerate what units and voice say; 0 takes half the time."""

    def __post_init__(self) -> None:
        at_least(1, "steps", self.steps)
        if self.guidance < 0:
            raise ConfigError(f"guidance must be at least 0, got {self.guidance}")
        vocoder = self.vocos or self.hifigan
        if vocoder is None or (self.vocos is not None and self.hifigan is not None):
            raise ConfigError("expected one vocoder of mels, a vocos or a hifigan")
        if not vocoder.hop_length == self.mels.hop_length == self.flow.mel_hop:
            raise ConfigError(
                f"the vocoder of mels renders frames of {vocoder.hop_length} samples, but mels "
                f"have {self.mels.hop_length} and the network {self.flow.mel_hop}"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompt:
    """A recording whose voice and manner shall go on."""

    wave: Tensor
    """float32 [T] at the vocoder's rate."""
    units: Units
    """Of that recording, by the vocoder's tokenizer."""


class UnitFlow:
    """Renders units by flow matching and a vocoder of mels."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: UnitFlowConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._tensors = dict(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        self.sample_rate = config.mels.sample_rate
        self.hop_length = config.flow.hop_length
        self.log_mels = LogMels(config.mels)
        weights = aligned(self._tensors)
        with torch.random.fork_rng(devices=[]):
            model, vocoder = FlowModel(config.flow), mel_vocoder(config)
        self.model = fill(model, below(weights, "flow."), KIND)
        self.vocoder: MelVocoder = fill(vocoder, below(weights, "vocoder."), KIND)
        pack_linears(self.model)
        pack_linears(self.vocoder)
        ahead = -(-self.vocoder.lookahead * config.mels.hop_length // self.hop_length)
        self.lookahead = config.flow.block - 1 + config.flow.lookahead + ahead

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Raise PluginError: it must be trained."""
        raise PluginError(
            f"vocoder {KIND!r} must be trained for {tokenizer.fingerprint!r}: run 'speechlm train "
            f"train.part=vocoder vocoder.name={KIND}'"
        )

    @classmethod
    def training(
        cls, tokenizer: AudioTokenizer, options: Mapping[str, Any], seed: int
    ) -> UnitFlowTraining:
        """Begin to train one, see :class:`speechlm.protocols.PartTraining`.

        Args:
            tokenizer: Whose units it shall render.
            options: Fields of :class:`speechlm_vocoders.flow_training.UnitFlowOptions`.
            seed: Decides the first weights.

        Raises:
            ConfigError: An option is not known or does not fit.
            CheckpointError: The vocoder of mels cannot be read.
        """
        from speechlm_vocoders.flow_training import UnitFlowTraining

        return UnitFlowTraining.begin(tokenizer, options, seed)

    def decode(
        self,
        units: Sequence[Units],
        speaker: Speaker | None = None,
        style: str | None = None,
        prompt: Prompt | None = None,
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        Args:
            units: With durations, or one unit a frame.
            speaker: An embedding, float32 [D] for all or [B, D] for each; None for the mean of
                the voices trained on.
            style: Must be None.
            prompt: A recording to go on from, for all.
        """
        for item in units:
            self._check_fingerprint(item)
        voices: Iterable[Speaker | None] = [speaker] * len(units)
        if isinstance(speaker, Tensor) and speaker.ndim == 2:
            if len(speaker) != len(units):
                raise InputError(
                    f"expected one voice for each of {len(units)} items, got {len(speaker)}"
                )
            voices = speaker
        waves = []
        for item, voice in zip(units, voices, strict=True):
            stream = self.stream(voice, style, prompt)
            waves.append(torch.cat([stream.push(item.expand().codes), stream.finish()]))
        return waves

    def stream(
        self,
        speaker: Speaker | None = None,
        style: str | None = None,
        prompt: Prompt | None = None,
    ) -> UnitFlowStream:
        if style is not None:
            raise InputError(f"vocoder {KIND!r} has one style; expected none, got {style!r}")
        return UnitFlowStream(self, self._voice(speaker), prompt)

    def _voice(self, speaker: Speaker | None) -> Tensor | None:
        """An embedding as the model takes it, float32 [1, D]; None where there is one voice."""
        dim = self.config.flow.speaker_dim
        if speaker is None:
            return self.model.mean_speaker[None] if dim else None
        if not dim:
            raise InputError(
                f"this {KIND!r} takes no speaker: give a prompt to go on from, or train one with "
                "vocoder.options.speaker_dim"
            )
        if not isinstance(speaker, Tensor) or speaker.shape != (dim,):
            got = repr(speaker) if isinstance(speaker, str) else list(speaker.shape)
            raise InputError(f"expected the embedding of a voice, float32 [{dim}], got {got}")
        return speaker.detach().float().clone()[None]

    def _check_fingerprint(self, units: Units) -> None:
        if units.fingerprint != self.tokenizer_fingerprint:
            raise FingerprintError(
                part="this vocoder",
                expected=self.tokenizer_fingerprint,
                got=units.fingerprint,
                remedy="tokenize with the tokenizer of the same bundle",
            )

    @torch.inference_mode()
    def context(self, prompt: Prompt | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stands before the first unit.

        Returns:
            codes: int64 [K, context]; -1 where there is nothing.
            known: Their scaled mels, float32 [1, C, num_mels].
            absent: Where there are none, bool [1, C].
        """
        shape, frames = self.config.flow, self.model.context_frames
        codes = torch.full((len(shape.codebook_sizes), shape.context), -1)
        known = torch.zeros(1, frames, shape.num_mels)
        absent = torch.ones(1, frames, dtype=torch.bool)
        if prompt is None:
            return codes, known, absent
        self._check_fingerprint(prompt.units)
        said = prompt.units.expand().codes
        self.check_codes(said)
        step = shape.granularity
        end = min(said.shape[1], len(prompt.wave) // self.hop_length) // step * step
        count = min(end, shape.context)
        if count == 0:
            raise InputError(
                f"expected a prompt of at least {step} units, got {said.shape[1]} units and "
                f"{len(prompt.wave)} samples"
            )
        first, last = shape.frames(end - count), shape.frames(end)
        codes[:, -count:] = said[:, end - count : end]
        mels = self.log_mels(prompt.wave[None].float())[:, first:last]
        known[:, first - last :] = self.model.scaled(mels)
        absent[:, first - last :] = False
        return codes, known, absent

    def check_codes(self, codes: Tensor) -> None:
        """Raise InputError unless these are units [K, m] of its codebooks."""
        sizes = torch.tensor(self.config.flow.codebook_sizes)[:, None]
        if codes.ndim != 2 or len(codes) != len(sizes):
            raise InputError(f"expected units [{len(sizes)}, m], got {list(codes.shape)}")
        if ((codes < 0) | (codes >= sizes)).any():
            raise InputError(
                f"expected units within 0..{int(sizes.max()) - 1}, "
                f"got {int(codes.min())}..{int(codes.max())}"
            )

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(UnitFlowConfig, part.config), part.tensors)


def mel_vocoder(config: UnitFlowConfig) -> MelVocoder:
    """The vocoder of mels that a configuration names, of fresh weights."""
    if config.vocos is not None:
        return MelVocos(config.mels, config.vocos)
    assert config.hifigan is not None
    return MelHiFiGAN(config.mels, config.hifigan)


class UnitFlowStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(self, vocoder: UnitFlow, voice: Tensor | None, prompt: Prompt | None) -> None:
        self._vocoder, self._voice = vocoder, voice
        self._model, self._shape = vocoder.model, vocoder.config.flow
        self._codes, self._known, self._absent = vocoder.context(prompt)
        """Units of the context and of what has no mels yet; mels of the context."""
        self._mels = vocoder.vocoder.stream()
        self._noise = torch.Generator().manual_seed(0)
        self._owed = 0
        """Samples of units pushed that have not been given."""
        self._unsaid = 0
        """Units pushed that have no mels yet."""

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m]; give the samples now certain, float32 [n]."""
        self._vocoder.check_codes(codes)
        self._owed += codes.shape[1] * self._vocoder.hop_length
        self._unsaid += codes.shape[1]
        self._codes = torch.cat([self._codes, codes], dim=1)
        waves = []
        while self._unsaid >= self._shape.block + self._shape.lookahead:
            waves.append(self._say(last=False))
        return self._take(waves)

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], so that all units have theirs."""
        if not self._owed and not self._unsaid:
            return torch.zeros(0)
        self._codes = F.pad(self._codes, (0, self._shape.block + self._shape.lookahead), value=-1)
        waves = []
        while self._unsaid > self._shape.block:
            waves.append(self._say(last=False))
        return self._take([*waves, self._say(last=True)])

    @torch.inference_mode()
    def _say(self, *, last: bool) -> Tensor:
        """Make the next chunk's mels, and what sound is now certain, float32 [n]."""
        shape, model = self._shape, self._model
        noise = torch.randn(1, model.block_frames, shape.num_mels, generator=self._noise)
        mels = flow(
            model,
            noise,
            self._known,
            self._absent,
            self._codes[None, :, : shape.context + shape.block + shape.lookahead],
            self._voice,
            steps=self._vocoder.config.steps,
            guidance=self._vocoder.config.guidance,
        )
        frames = model.context_frames
        self._known = torch.cat([self._known, mels], dim=1)[:, -frames:]
        known = torch.zeros(1, model.block_frames, dtype=torch.bool)
        self._absent = torch.cat([self._absent, known], dim=1)[:, -frames:]
        self._codes = self._codes[:, shape.block :]
        real = shape.frames(min(self._unsaid, shape.block))
        self._unsaid = max(0, self._unsaid - shape.block)
        return self._mels.push(model.unscaled(mels[0, :real]), last=last)

    def _take(self, waves: list[Tensor]) -> Tensor:
        wave = torch.cat(waves) if waves else torch.zeros(0)
        wave = wave[: self._owed]
        self._owed -= len(wave)
        return wave.clamp(-1.0, 1.0)
