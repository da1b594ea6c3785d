"""``unit-hifigan``: units to sound by HiFi-GAN, trained here or read as others published it.

Nothing in it is causal, and yet its stream is exact: see
:mod:`speechlm_vocoders.hifigan_model`. Optional are a voice (by name or as an embedding), a style
(or language) by name, further codebooks beside the units (quantized pitch, style tokens), a
pitch contour, and a predictor of durations, for units whose repeats were merged and whose
lengths nobody kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import CheckpointError, ConfigError, FingerprintError, InputError, PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.settings import at_least
from speechlm.units import Units
from speechlm_tokenizers.codec_loading import fill
from speechlm_vocoders.hifigan_model import HiFiGAN, HiFiGANConfig
from speechlm_vocoders.hifigan_stream import DurationStream, UnitHiFiGANStream, check_codes

if TYPE_CHECKING:
    from speechlm_vocoders.hifigan_checkpoints import Published
    from speechlm_vocoders.hifigan_training import UnitHiFiGANTraining

KIND = "unit-hifigan"
BLOCK = 25
"""Frames rendered at once where nothing else is asked for."""
MAX_NAMES = 20
"""Most voices or styles that an error lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitHiFiGANConfig:
    """A ``unit-hifigan`` and the tokenizer whose units it renders."""

    tokenizer_fingerprint: str
    sample_rate: int
    """Hz."""
    model: HiFiGANConfig
    speaker_names: tuple[str, ...] = ()
    """Of the table's rows."""
    style_names: tuple[str, ...] = ()
    predict_durations: bool = False
    """Whether units without durations are units whose repeats were merged, so that each lasts
    as long as predicted; else each is one frame."""
    block: int = BLOCK
    """Frames that are rendered at once: fewer come sooner, more take less time in all."""

    def __post_init__(self) -> None:
        at_least(1, "sample_rate", self.sample_rate)
        at_least(1, "block", self.block)
        for names, size, what in (
            (self.speaker_names, self.model.num_speakers, "speaker"),
            (self.style_names, self.model.num_styles, "style"),
        ):
            if len(names) != size:
                raise ConfigError(f"expected {size} {what} names, one each, got {len(names)}")
        if self.predict_durations and not self.model.duration_dim:
            raise ConfigError(
                "predict_durations needs a duration predictor, and this vocoder has none; leave "
                "it off and give units with durations"
            )
        if self.predict_durations and self.model.raw_f0:
            raise ConfigError(
                "predict_durations cannot be on where a pitch contour says how long units last"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedOptions:
    """``vocoder.options`` that name a published checkpoint instead of a training."""

    checkpoint: Path | None = None
    """A ``.pt`` of fairseq, textless, Spirit LM or speech-resynthesis, with ``config``."""
    config: Path | None = None
    """Its JSON."""
    seamless: Path | None = None
    """Or a folder of transformers' SeamlessM4T."""
    sha256: str | None = None
    """What the checkpoint's SHA-256 must be."""
    speakers: Path | None = None
    """Names of the voices, one a line; their numbers without."""
    styles: Path | None = None
    """Names of the styles, one a line; their numbers without."""
    predict_durations: bool = False
    block: int = BLOCK

    def __post_init__(self) -> None:
        if (self.seamless is None) == (self.checkpoint is None) or (
            (self.checkpoint is None) != (self.config is None)
        ):
            raise ConfigError(
                "expected vocoder.options.checkpoint with vocoder.options.config, or "
                "vocoder.options.seamless alone"
            )


class UnitHiFiGAN:
    """Renders units by HiFi-GAN; exactly streamed."""

    streaming: Literal["exact"] = "exact"

    def __init__(self, config: UnitHiFiGANConfig, model: HiFiGAN) -> None:
        """Take a model whose weights will not change any more."""
        self.config = config
        self.model = model.eval().requires_grad_(False)
        self.fingerprint = fingerprint(KIND, asdict(config), self.model.state_dict())
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        self.sample_rate = config.sample_rate
        self.hop_length = config.model.hop_length
        self.speaker_dim = config.model.speaker_dim
        self.variable_rate = config.predict_durations
        """Whether a unit without durations may last longer than a frame."""
        held = 2 * (config.model.duration_kernel // 2) if config.predict_durations else 0
        self.lookahead = config.block - 1 + config.model.lookahead + held

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Raise PluginError: it is trained, or read from a published checkpoint."""
        raise PluginError(
            f"vocoder {KIND!r} must be trained for {tokenizer.fingerprint!r}: run 'speechlm train "
            f"train.part=vocoder vocoder.name={KIND}', or take a published one: 'speechlm fit "
            f"vocoder.name={KIND} vocoder.options.checkpoint=G.pt vocoder.options.config=G.json'"
        )

    @classmethod
    def from_options(cls, tokenizer: AudioTokenizer, options: Mapping[str, Any]) -> Self | None:
        """Read the checkpoint that :class:`PublishedOptions` name; None where they name none.

        Raises:
            ConfigError: An option is not known, or half of a checkpoint is named.
            CheckpointError: See :meth:`from_checkpoint`.
        """
        if not options.keys() & {"checkpoint", "config", "seamless"}:
            return None  # options of a training
        given = build(PublishedOptions, options, "vocoder.options")
        if given.seamless is not None:
            return cls.from_seamless(
                given.seamless,
                tokenizer,
                predict_durations=given.predict_durations,
                block=given.block,
            )
        assert given.checkpoint is not None
        assert given.config is not None
        return cls.from_checkpoint(
            given.checkpoint,
            given.config,
            tokenizer,
            sha256=given.sha256,
            speakers=given.speakers,
            styles=given.styles,
            predict_durations=given.predict_durations,
            block=given.block,
        )

    @classmethod
    def training(
        cls, tokenizer: AudioTokenizer, options: Mapping[str, Any], seed: int
    ) -> UnitHiFiGANTraining:
        """Begin to train one, see :class:`UnitHiFiGANOptions` and ``PartTraining``.

        Raises:
            ConfigError: An option is not known or does not fit.
        """
        from speechlm_vocoders.hifigan_training import UnitHiFiGANTraining

        return UnitHiFiGANTraining.begin(tokenizer, options, seed)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Path,
        config: Path,
        tokenizer: AudioTokenizer,
        *,
        sha256: str | None = None,
        speakers: Path | None = None,
        styles: Path | None = None,
        predict_durations: bool = False,
        block: int = BLOCK,
    ) -> Self:
        """Read one that fairseq, textless, Spirit LM or speech-resynthesis published.

        Args:
            checkpoint: The ``.pt``, ``{"generator": state dict}``.
            config: Its JSON.
            tokenizer: Whose units it renders: the same features and centroids.
            sha256: What the checkpoint's SHA-256 must be.
            speakers: Names of the voices, one a line; their numbers without.
            styles: Names of the styles, one a line; their numbers without.
            predict_durations: See :class:`UnitHiFiGANConfig`.
            block: See :class:`UnitHiFiGANConfig`.

        Raises:
            CheckpointError: A file is missing, truncated, of another kind or not the one
                expected, or it was not made for units like this tokenizer's.
        """
        from speechlm_vocoders.hifigan_checkpoints import read_fairseq

        published = read_fairseq(Path(checkpoint), Path(config), sha256)
        return cls._of_published(
            published,
            tokenizer,
            speaker_names=_names(speakers, published.model.num_speakers),
            style_names=_names(styles, published.model.num_styles),
            predict_durations=predict_durations,
            block=block,
        )

    @classmethod
    def from_seamless(
        cls,
        folder: Path,
        tokenizer: AudioTokenizer,
        *,
        predict_durations: bool = False,
        block: int = BLOCK,
    ) -> Self:
        """Read the vocoder of a SeamlessM4T that transformers saved; languages are its styles.

        Raises:
            CheckpointError: The folder holds none, or it was not made for units like this
                tokenizer's.
        """
        from speechlm_vocoders.hifigan_checkpoints import read_seamless

        published = read_seamless(Path(folder))
        return cls._of_published(
            published,
            tokenizer,
            speaker_names=_names(None, published.model.num_speakers),
            style_names=published.style_names or _names(None, published.model.num_styles),
            predict_durations=predict_durations,
            block=block,
        )

    @classmethod
    def _of_published(
        cls, published: Published, tokenizer: AudioTokenizer, **settings: Any
    ) -> Self:
        sizes, rate = codebook_sizes(tokenizer), published.sample_rate / published.model.hop_length
        if published.model.codebook_sizes != sizes or abs(rate - tokenizer.frame_rate) > 1e-6:
            raise CheckpointError(
                f"{published.source} renders units of {list(published.model.codebook_sizes)} at "
                f"{rate:g} Hz, but those of {tokenizer.fingerprint!r} are {list(sizes)} at "
                f"{tokenizer.frame_rate:g} Hz: give the tokenizer that it was made for"
            )
        config = UnitHiFiGANConfig(
            tokenizer_fingerprint=tokenizer.fingerprint,
            sample_rate=published.sample_rate,
            model=published.model,
            **settings,
        )
        return cls(config, filled(config.model, published.tensors, published.source))

    def decode(
        self,
        units: Sequence[Units],
        speaker: Speaker | None = None,
        style: str | None = None,
        f0: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        Args:
            units: With durations or one a frame; see ``predict_durations``.
            speaker: A name of ``speaker_names``, or an embedding; the first or mean one if None.
            style: A name of ``style_names``; the first one if None.
            f0: Where the vocoder takes a pitch contour: one each, float32 [F * repeats].

        Returns:
            float32 [F * hop_length] each; with ``predict_durations`` and units that have none,
            as long as is predicted.
        """
        for item in units:
            if item.fingerprint != self.tokenizer_fingerprint:
                raise FingerprintError(
                    part="this vocoder",
                    expected=self.tokenizer_fingerprint,
                    got=item.fingerprint,
                    remedy="tokenize with the tokenizer of the same bundle",
                )
        voices: Sequence[Speaker | None] = [speaker] * len(units)
        if isinstance(speaker, Tensor) and speaker.ndim == 2:
            if len(speaker) != len(units):
                raise InputError(
                    f"expected one voice for each of {len(units)} items, got {len(speaker)}"
                )
            voices = list(speaker)
        if f0 is not None and len(f0) != len(units):
            raise InputError(f"expected one f0 for each of {len(units)} items, got {len(f0)}")
        waves = []
        for index, (item, voice) in enumerate(zip(units, voices, strict=True)):
            predict = self.config.predict_durations and item.durations is None
            stream = self._stream(voice, style, predict=predict)
            contour = None if f0 is None else f0[index]
            waves.append(torch.cat([stream.push(item.expand().codes, contour), stream.finish()]))
        return waves

    def stream(self, speaker: Speaker | None = None, style: str | None = None) -> UnitHiFiGANStream:
        return self._stream(speaker, style, predict=self.config.predict_durations)

    def _stream(
        self, speaker: Speaker | None, style: str | None, *, predict: bool
    ) -> UnitHiFiGANStream:
        return UnitHiFiGANStream(
            self.model,
            self.config.block,
            voice=self.voice(speaker),
            style=self.style(style),
            predict_durations=predict,
        )

    def with_durations(self, units: Units) -> Units:
        """Merge repeats and predict how long each unit lasts; those that have durations keep them.

        Raises:
            InputError: The vocoder has no duration predictor, or units beyond its vocabulary.
        """
        if units.durations is not None:
            return units
        if self.model.durations is None:
            raise InputError(f"this {KIND!r} has no duration predictor; give units with durations")
        check_codes(units.codes, self.config.model)
        lengths = DurationStream(self.model)
        parts = [lengths.push(units.codes), lengths.finish()]
        codes, durations = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))
        return replace(units, codes=codes, durations=durations)

    def voice(self, speaker: Speaker | None) -> Tensor | None:
        """What the model takes for a voice: int64 [1] or float32 [1, D]; None where it has one.

        Raises:
            InputError: It is none that this vocoder knows, or of another kind.
        """
        names, dim = self.config.speaker_names, self.config.model.speaker_dim
        if not dim:
            if isinstance(speaker, Tensor):
                raise InputError(
                    f"this {KIND!r} takes no embedding of a voice; {_known('speaker', names)}"
                )
            return _row(speaker, names, "speaker")
        if isinstance(speaker, str):
            raise InputError(
                f"expected a voice as an embedding, float32 [{dim}], got the name {speaker!r}"
            )
        if speaker is None:
            speaker = self.model.mean_speaker
            if not speaker.any():
                raise InputError(
                    f"this {KIND!r} needs a voice: give the embedding of one, float32 [{dim}]"
                )
        if speaker.shape != (dim,) or not speaker.is_floating_point():
            raise InputError(
                f"expected the embedding of a voice, float32 [{dim}], got "
                f"{speaker.dtype} {list(speaker.shape)}"
            )
        # A copy, as of the weights: a row of a batch may lie anywhere.
        return speaker.float().clone()[None]

    def style(self, style: str | None) -> Tensor | None:
        """What the model takes for a style, int64 [1]; None where it has none."""
        return _row(style, self.config.style_names, "style")

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self.model.state_dict())

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        config = build(UnitHiFiGANConfig, part.config)
        return cls(config, filled(config.model, part.tensors, folder))


def filled(config: HiFiGANConfig, tensors: Mapping[str, Tensor], source: object) -> HiFiGAN:
    """A model with the weights given.

    Raises:
        CheckpointError: A tensor is missing, of another shape, or of no use; ``source`` is named.
    """
    # A product's last bits may hang on where in memory its factors lie, and what a file holds
    # lies anywhere; copies all begin alike.
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.random.fork_rng(devices=[]):
        return fill(HiFiGAN(config), copies, source)


def codebook_sizes(tokenizer: AudioTokenizer) -> tuple[int, ...]:
    """Units of each of a tokenizer's codebooks."""
    default = (tokenizer.vocab_size,) * tokenizer.num_codebooks
    return tuple(getattr(tokenizer, "codebook_sizes", default))


def _row(name: str | None, names: tuple[str, ...], what: str) -> Tensor | None:
    if name is None:
        return torch.zeros(1, dtype=torch.int64) if names else None
    if name not in names:
        raise InputError(f"unknown {what} {name!r}; {_known(what, names)}")
    return torch.tensor([names.index(name)])


def _known(what: str, names: tuple[str, ...]) -> str:
    if not names:
        return f"this {KIND!r} has but one {what}: give none"
    more = f" … ({len(names)} in all)" if len(names) > MAX_NAMES else ""
    return f"known: {', '.join(names[:MAX_NAMES])}{more}"


def _names(path: Path | None, count: int) -> tuple[str, ...]:
    """One name a line, or numbers."""
    if path is None:
        return tuple(map(str, range(count)))
    try:
        names = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); expected a name a line") from error
    names = tuple(name for name in names if name)
    if len(names) > count:
        raise CheckpointError(
            f"{path} holds {len(names)} names, but the checkpoint has {count} of them"
        )
    # Tables are often larger than what they were trained for.
    return names + tuple(map(str, range(len(names), count)))
