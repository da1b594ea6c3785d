"""``unit-vocos``: a small trained vocoder for the units of any tokenizer, exactly streamed.

Trains on a CPU in minutes and runs there many times faster than real time; how, the module
:mod:`speechlm_vocoders.vocos_model` says. It has one voice, or any voice whose embedding is
given. :mod:`speechlm_vocoders.vocos_training` trains it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.model.fast_linear import pack_linears
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.settings import at_least
from speechlm.streaming import Blocks, State
from speechlm.units import Units
from speechlm_vocoders.vocos_model import VocosModel, VocosModelConfig

if TYPE_CHECKING:
    from speechlm_vocoders.vocos_training import UnitVocosTraining

KIND = "unit-vocos"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitVocosConfig:
    """A ``unit-vocos`` and the tokenizer whose units it renders."""

    tokenizer_fingerprint: str
    model: VocosModelConfig
    block: int
    """Unit frames rendered at once: fewer come sooner, more take less time in all."""

    def __post_init__(self) -> None:
        at_least(1, "block", self.block)


class UnitVocos:
    """Renders units by causal ConvNeXt blocks and inverse Fourier transforms."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: UnitVocosConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._tensors = dict(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        self.sample_rate = config.model.sample_rate
        self.hop_length = config.model.hop_length
        self.speaker_dim = config.model.speaker_dim
        self.lookahead = config.model.lookahead + config.block - 1
        with torch.random.fork_rng(devices=[]):
            self.model = VocosModel(config.model)
        self.model.load_state_dict(self._tensors)
        self.model.eval().requires_grad_(False)
        pack_linears(self.model)

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
    ) -> UnitVocosTraining:
        """Begin to train one, see :class:`speechlm.protocols.PartTraining`.

        Args:
            tokenizer: Whose units it shall render.
            options: Fields of :class:`speechlm_vocoders.vocos_training.UnitVocosOptions`.
            seed: Decides the first weights.

        Raises:
            ConfigError: An option is not known or does not fit.
        """
        from speechlm_vocoders.vocos_training import UnitVocosTraining

        return UnitVocosTraining.begin(tokenizer, options, seed)

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        Args:
            units: With durations, or one unit a frame.
            speaker: An embedding, float32 [D] for all or [B, D] for each; None for the mean of
                the voices trained on.
            style: Must be None.
        """
        for item in units:
            if item.fingerprint != self.tokenizer_fingerprint:
                raise FingerprintError(
                    part="this vocoder",
                    expected=self.tokenizer_fingerprint,
                    got=item.fingerprint,
                    remedy="tokenize with the tokenizer of the same bundle",
                )
        voices: Iterable[Speaker | None] = [speaker] * len(units)
        if isinstance(speaker, Tensor) and speaker.ndim == 2:
            if len(speaker) != len(units):
                raise InputError(
                    f"expected one voice for each of {len(units)} items, got {len(speaker)}"
                )
            voices = speaker
        waves = []
        for item, voice in zip(units, voices, strict=True):
            stream = self.stream(voice, style)
            waves.append(torch.cat([stream.push(item.expand().codes), stream.finish()]))
        return waves

    def stream(self, speaker: Speaker | None = None, style: str | None = None) -> UnitVocosStream:
        if style is not None:
            raise InputError(f"vocoder {KIND!r} has one style; expected none, got {style!r}")
        return UnitVocosStream(self, self._voice(speaker))

    def _voice(self, speaker: Speaker | None) -> Tensor | None:
        """An embedding as the model takes it, float32 [1, D]; None where there is one voice."""
        dim = self.config.model.speaker_dim
        if speaker is None:
            return self.model.mean_speaker[None] if dim else None
        if not dim:
            raise InputError(
                f"this {KIND!r} has one voice; expected no speaker, or train one with "
                "vocoder.options.speaker_dim"
            )
        if not isinstance(speaker, Tensor) or speaker.shape != (dim,):
            got = repr(speaker) if isinstance(speaker, str) else list(speaker.shape)
            raise InputError(f"expected the embedding of a voice, float32 [{dim}], got {got}")
        return speaker.detach().float().clone()[None]

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(UnitVocosConfig, part.config), part.tensors)


class UnitVocosStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(self, vocoder: UnitVocos, voice: Tensor | None) -> None:
        self._model, self._voice = vocoder.model, voice
        self._sizes = torch.tensor(vocoder.config.model.codebook_sizes)[:, None]
        self._block, self._hop = vocoder.config.block, vocoder.hop_length
        self._lookahead = vocoder.config.model.lookahead
        self._blocks = Blocks(self._block)
        self._state: State = {}
        self._noise = torch.Generator().manual_seed(0)
        self._frames = 0
        self._skip = self._lookahead * self._hop
        """Samples before the utterance's first, which are still to come."""
        self._owed = 0
        """Samples of units pushed that have not been given."""

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m]; give the samples now certain, float32 [n]."""
        if codes.ndim != 2 or len(codes) != len(self._sizes):
            raise InputError(f"expected units [{len(self._sizes)}, m], got {list(codes.shape)}")
        if ((codes < 0) | (codes >= self._sizes)).any():
            raise InputError(
                f"expected units within 0..{int(self._sizes.max()) - 1}, "
                f"got {int(codes.min())}..{int(codes.max())}"
            )
        self._frames += codes.shape[1]
        self._owed += codes.shape[1] * self._hop
        return self._render(codes)

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], so that all units have theirs."""
        if not self._frames:
            return torch.zeros(0)
        missing = -(self._frames + self._lookahead) % self._block + self._lookahead
        return self._render(torch.full((len(self._sizes), missing), -1))

    def _render(self, codes: Tensor) -> Tensor:
        parts = [self._render_block(block) for block in self._blocks.push(codes)]
        wave = torch.cat(parts) if parts else torch.zeros(0)
        skipped = min(self._skip, len(wave))
        self._skip -= skipped
        wave = wave[skipped : skipped + self._owed]
        self._owed -= len(wave)
        return wave.clamp(-1.0, 1.0)

    @torch.inference_mode()
    def _render_block(self, codes: Tensor) -> Tensor:
        noise = torch.randn(1, self._block * self._hop, generator=self._noise)
        waves: Tensor
        waves, _ = self._model(codes[None], noise, self._voice, state=self._state)
        return waves[0]
