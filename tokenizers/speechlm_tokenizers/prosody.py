"""``prosody``: rows of pitch, loudness, speaking rate and style beside another tokenizer's units.

Units mostly say which sound it is and lose how it is said. This tokenizer goes on top of a
fitted one and adds a row each, frame for frame:

``f0``
    Log F0 by Praat, less the voice's mean; bin 0 is unvoiced.
``energy``
    Loudness in dB, less the speech's mean; bin 0 is silence.
``rate``
    How often the base's first unit changed within the last ``rate_window_s``.
``style``
    With ``style_model``, the label that a classifier of the hub gives each ``style_window_s``.

Values become bins by quantiles of the corpus, so that all are about as frequent. pGSLM takes
the mean log F0 of the *speaker*; a recording comes without a name, so here it is the mean of the
voice heard so far, which starts from the corpus' own. Nothing looks at anything but blocks of a
fixed size with a fixed context: a stream gives exactly what the whole gives.

Sources:
    Kharitonov et al. 2021 (pGSLM: log F0 less the speaker's mean, 32 bins by quantiles),
    arXiv:2109.03264; Nguyen et al. 2024 (Spirit-LM: pitch, and style each second),
    arXiv:2402.05755.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.plugins import TOKENIZERS
from speechlm.protocols import AudioTokenizer
from speechlm.units import Units
from speechlm_tokenizers.prosody_config import (
    SOUND_ROWS,
    ProsodyConfig,
    has_sounds,
    normaliser_of,
    num_frames,
    pitch_tracker,
    sounds_of,
)
from speechlm_tokenizers.prosody_fit import quantiles
from speechlm_tokenizers.prosody_rows import Normaliser, Rate, Sounds, Style
from speechlm_tokenizers.style import StyleClassifier
from speechlm_tokenizers.wrapping import pack, take_base, unpack

KIND = "prosody"
STYLE = "style"
ENCODE_S = 60.0
"""How much ``encode`` measures at once: bounds the memory that a long recording takes, s."""


class Prosody:
    """A base tokenizer's rows, and below them pitch, energy, rate and style.

    Args:
        config: Options.
        base: What gives the first rows, one a frame.
        tensors: Float64; ``ROW_edges`` [bins], the values at which the next bin begins, and of
            f0 and energy ``ROW_mean`` [1], the corpus' mean.
        style: The classifier, where there is a row of it.
        known_as: Its fingerprint, where that is known.
    """

    default_vocoder = KIND

    def __init__(
        self,
        config: ProsodyConfig,
        base: AudioTokenizer,
        tensors: Mapping[str, Tensor],
        style: StyleClassifier | None = None,
        known_as: str | None = None,
    ) -> None:
        self.config = config
        self.base = base
        self.style = style
        self._tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.fingerprint = known_as or fingerprint(KIND, *self._packed())
        self.rows: tuple[str, ...] = (*config.streams, *([STYLE] if style else []))
        """What each row below the base's holds."""
        bins: dict[str, int] = {row: getattr(config, f"{row}_bins") for row in config.streams}
        bins[STYLE] = len(style.labels) if style else 0
        of_base = (base.vocab_size,) * base.num_codebooks
        self.codebook_sizes: tuple[int, ...] = (
            *getattr(base, "codebook_sizes", of_base),
            *(bins[row] for row in self.rows),
        )
        """Units of each row, the base's first."""
        self.vocab_size = max(self.codebook_sizes)
        self.num_codebooks = len(self.codebook_sizes)
        self.sample_rate = base.sample_rate
        self.hop_length = base.hop_length
        self.frame_rate = base.frame_rate
        self.streaming = base.streaming
        self.lookahead = max(base.lookahead, self._wait() * base.hop_length)
        self._tracker = pitch_tracker(config, base) if "f0" in config.streams else None

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        sizes = [wave.shape[1]] * wave.shape[0] if lengths is None else lengths.tolist()
        encoded = []
        for row, size, units in zip(wave, sizes, self.base.encode(wave, lengths), strict=True):
            sides = SideRows(self)
            for block in torch.split(row[:size], round(ENCODE_S * self.sample_rate)):
                sides.hear(block)
            sides.take_units(units.codes)
            sides.finish()
            encoded.append(
                Units(
                    codes=sides.give(),
                    frame_rate=self.frame_rate,
                    fingerprint=self.fingerprint,
                )
            )
        return encoded

    def stream(self) -> ProsodyStream:
        return ProsodyStream(self)

    def quantize(self, row: str, values: Tensor) -> Tensor:
        """The bins of a row's values, int64 [F]; those of NaN (unvoiced, silence) are 0."""
        bins = torch.bucketize(values.nan_to_num(), self._tensors[f"{row}_edges"], right=True)
        return bins if row == "rate" else (bins + 1).masked_fill(values.isnan(), 0)

    def sounds(self) -> Sounds:
        """What measures a recording's pitch and energy."""
        return sounds_of(self.config, self.base, self._tracker)

    def normaliser(self) -> Normaliser:
        """What a recording's pitch and energy are normalised by."""
        return normaliser_of(self.config, self.base, self._tensors)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, *self._packed())

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        base, config, tensors = unpack(part, TOKENIZERS)
        style, described = None, config.pop(STYLE, None)
        if described is not None:
            names = [name for name in tensors if name.startswith(f"{STYLE}.")]
            weights = {name.removeprefix(f"{STYLE}."): tensors.pop(name) for name in names}
            style = StyleClassifier(described, weights)
        return cls(build(ProsodyConfig, config), base, tensors, style, part.fingerprint)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        """Style alone has nothing to fit."""
        return bool(options.get("streams", True))

    @classmethod
    def fit_sample_rate(cls, options: Mapping[str, Any]) -> int:
        """Rate of the recordings that :meth:`fit` takes, Hz: the base's."""
        return take_base(KIND, options)[0].sample_rate

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Take the quantiles of a corpus.

        Args:
            waves: Recordings, float32 [T] at the base's rate; read until there are
                ``fit_frames``.
            options: ``base``, ``style_model`` and fields of :class:`ProsodyConfig`.
            seed: Not used: nothing is drawn.

        Raises:
            ConfigError: An option is not known or does not fit.
            CorpusError: Nothing in the corpus is voiced, or nothing is there.
            CheckpointError: The base or the classifier cannot be read.
            PluginError: Praat is not installed.
        """
        base, others = take_base(KIND, options)
        source = others.pop("style_model", None)
        config = build(ProsodyConfig, others, "tokenizer.options")
        if getattr(base, "variable_rate", False):
            raise ConfigError(
                f"tokenizer {KIND!r} adds rows to units one a frame, but those of "
                f"{base.fingerprint!r} last unequally long; choose another tokenizer.options.base"
            )
        if not config.streams and source is None:
            raise ConfigError("expected streams or a style_model, got neither")
        tensors = quantiles(config, base, waves) if config.streams else {}
        style = None if source is None else StyleClassifier.of(str(source))
        return cls(config, base, tensors, style)

    def _wait(self) -> int:
        """Frames beyond one that its side rows may have to wait for."""
        waits = [0]
        if has_sounds(self.config):
            block, context = self.config.block_s, self.config.context_s
            waits.append(num_frames(block, self.base) - 1 + num_frames(context, self.base))
        if self.style is not None:
            waits.append(num_frames(self.config.style_window_s, self.base) - 1)
        return max(waits)

    def _packed(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config, tensors = asdict(self.config), dict(self._tensors)
        if self.style is not None:
            config[STYLE] = self.style.described
            tensors |= {f"{STYLE}.{name}": part for name, part in self.style.tensors.items()}
        return pack(self.base, config, tensors)


class SideRows:
    """All rows of one recording as they come: each may run ahead of the others."""

    def __init__(self, tokenizer: Prosody) -> None:
        config = tokenizer.config
        self._tokenizer = tokenizer
        self._sounds = tokenizer.sounds() if has_sounds(config) else None
        self._normaliser = tokenizer.normaliser()
        self._rate = Rate(num_frames(config.rate_window_s, tokenizer.base))
        self._style = None
        if tokenizer.style is not None:
            self._style = Style(
                tokenizer.style,
                sample_rate=tokenizer.sample_rate,
                hop_length=tokenizer.hop_length,
                window=num_frames(config.style_window_s, tokenizer.base),
            )
        num_units = tokenizer.num_codebooks - len(tokenizer.rows)
        none = torch.zeros(0, dtype=torch.int64)
        self._units = [none.expand(num_units, 0)]
        self._rows = {row: [none] for row in tokenizer.rows}

    def hear(self, samples: Tensor) -> None:
        """Take float32 [n]."""
        if self._sounds is not None:
            self._measured(self._sounds.push(samples))
        if self._style is not None:
            self._rows[STYLE].append(self._style.push(samples))

    def take_units(self, codes: Tensor) -> None:
        """Take the base's units, int64 [K, m]."""
        self._units.append(codes)
        if "rate" in self._rows:
            counts = self._rate.push(codes[0])
            self._rows["rate"].append(self._tokenizer.quantize("rate", counts.double()))

    def finish(self) -> None:
        """Take the end of the recording, but for that of its units."""
        if self._sounds is not None:
            self._measured(self._sounds.finish())
        if self._style is not None:
            self._rows[STYLE].append(self._style.finish())

    def give(self) -> Tensor:
        """Give the frames of which every row has come, int64 [K, m]."""
        units = torch.cat(self._units, dim=1)
        rows = {name: torch.cat(parts) for name, parts in self._rows.items()}
        frames = min(units.shape[1], *(len(row) for row in rows.values()))
        self._units = [units[:, frames:]]
        self._rows = {name: [row[frames:]] for name, row in rows.items()}
        return torch.cat([units[:, :frames], *(row[None, :frames] for row in rows.values())])

    def _measured(self, blocks: list[dict[str, Tensor]]) -> None:
        for block in blocks:
            values = self._normaliser.apply(block)
            for row in SOUND_ROWS:
                if row in self._rows:
                    self._rows[row].append(self._tokenizer.quantize(row, values[row]))


class ProsodyStream:
    """One live recording; see :class:`speechlm.protocols.TokenizerStream`."""

    def __init__(self, tokenizer: Prosody) -> None:
        self._base = tokenizer.base.stream()
        self._sides = SideRows(tokenizer)

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n]; give the units now certain, int64 [K, m]."""
        self._sides.hear(samples)
        self._sides.take_units(self._base.push(samples))
        return self._sides.give()

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [K, m], and close the stream."""
        self._sides.finish()
        self._sides.take_units(self._base.finish())
        return self._sides.give()
