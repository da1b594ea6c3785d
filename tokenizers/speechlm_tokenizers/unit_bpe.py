"""``unit-bpe``: what a tokenizer says often in a row becomes one token.

Byte-pair encoding of the units of any fitted tokenizer of one codebook: every unit is a
character, merges are learnt on a corpus by Hugging Face's ``tokenizers``. An LM then has fewer
positions a second to read and to write.

A recording is cut into spans of ``span_s`` and no token reaches over the edge of one, so a
stream gives exactly the tokens of the whole. A token knows its units, so the tokens of a
recording are its units again, exactly. With ``collapse`` repeats are merged before the pairs
are: tokens are sequences of sounds of any length, :attr:`Units.durations` keeps how long a token
lasts, and how that is shared among its units is what it was on average.

Sources:
    Sennrich et al. 2016 (BPE), arXiv:1508.07909; Shen et al. 2023 (acoustic BPE),
    arXiv:2310.14580; Wu et al. 2022 (Wav2Seq: repeats merged first), arXiv:2205.01086.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError, CorpusError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.plugins import TOKENIZERS
from speechlm.protocols import AudioTokenizer
from speechlm.streaming import Blocks
from speechlm.units import Units, collapse_repeats
from speechlm_tokenizers.merges import Merges, learn, mean_run_lengths
from speechlm_tokenizers.wrapping import pack, take_base, unpack

KIND = "unit-bpe"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitBPEConfig:
    """The tokenizer's options beside ``base``, the folder of the tokenizer that it goes on."""

    vocab_size: int = 4000
    """Most tokens, the base's units included; fewer where the corpus has no more pairs."""
    collapse: bool = False
    """Merge repeats first: tokens then say which sounds, not how long each."""
    span_s: float = 2.0
    """No token reaches over a multiple of this, s; a stream gives tokens as often."""
    min_count: int = 2
    """A pair must come as often to become a token."""
    fit_frames: int = 10_000_000
    """Frames of units to learn from, at most; recordings after them are not heard."""

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or self.min_count < 1 or self.fit_frames < 1:
            raise ConfigError(
                "expected vocab_size of 2 or more, min_count and fit_frames of 1 or more, got "
                f"{self.vocab_size}, {self.min_count} and {self.fit_frames}"
            )
        if not 0 < self.span_s <= 60:
            raise ConfigError(f"expected span_s above 0 and up to 60 s, got {self.span_s}")


class UnitBPE:
    """Byte-pair encoding over another tokenizer's units; as exact as that one is.

    Args:
        config: Options.
        base: What gives the units.
        tensors: ``merges`` int64 [M, 2], and with ``collapse`` ``run_lengths`` float32 [P].
        known_as: Its fingerprint, where that is known.
    """

    num_codebooks = 1
    default_vocoder = KIND
    variable_rate = True
    """Its units are not one a frame: ``Units.durations`` says how many frames each covers."""

    def __init__(
        self,
        config: UnitBPEConfig,
        base: AudioTokenizer,
        tensors: Mapping[str, Tensor],
        known_as: str | None = None,
    ) -> None:
        self.config = config
        self.base = base
        self._tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.fingerprint = known_as or fingerprint(KIND, *pack(base, asdict(config), tensors))
        run_lengths = tensors["run_lengths"].double() if config.collapse else None
        self._merges = Merges(base.vocab_size, tensors["merges"], run_lengths)
        self.table = self._merges.table
        self.vocab_size = len(self.table)
        self.sample_rate = base.sample_rate
        self.hop_length = base.hop_length
        self.frame_rate = base.frame_rate
        self.streaming = base.streaming
        self.span = _span(base, config)
        self.lookahead = base.lookahead + (self.span - 1) * base.hop_length

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        encoded = []
        for units in self.base.encode(wave, lengths):
            tokens, durations = self.merge(torch.split(units.codes[0], self.span))
            encoded.append(
                Units(
                    codes=tokens[None],
                    frame_rate=self.frame_rate,
                    fingerprint=self.fingerprint,
                    durations=durations,
                    variable_rate=True,
                )
            )
        return encoded

    def stream(self) -> UnitBPEStream:
        return UnitBPEStream(self)

    def merge(self, spans: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """The tokens of spans of the base's units, int64 [F] each, and the frames of each token.

        Returns:
            Two tensors int64 [U].
        """
        none = torch.zeros(0, dtype=torch.int64)
        parts = [(none, none), *(self._merges.apply(span) for span in spans)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def expand_tokens(self, units: Units) -> Units:
        """The base's units that tokens stand for; without durations as long as on average.

        They are the very ones that were merged; with ``collapse``, up to how the frames of a
        token are shared among its units.

        Raises:
            InputError: Tokens that it does not have.
        """
        return Units(
            codes=self.table.expand(units.codes[0], units.durations)[None],
            frame_rate=self.frame_rate,
            fingerprint=self.base.fingerprint,
        )

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, *pack(self.base, asdict(self.config), self._tensors))

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        base, config, tensors = unpack(part, TOKENIZERS)
        return cls(build(UnitBPEConfig, config), base, tensors, part.fingerprint)

    @classmethod
    def fit_sample_rate(cls, options: Mapping[str, Any]) -> int:
        """Rate of the recordings that :meth:`fit` takes, Hz: the base's."""
        return take_base(KIND, options)[0].sample_rate

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Learn the merges.

        Args:
            waves: Recordings, float32 [T] at the base's rate; read until there are
                ``fit_frames``.
            options: ``base``, the folder of a fitted tokenizer of one codebook, and fields of
                :class:`UnitBPEConfig`.
            seed: Not used: nothing is drawn.

        Raises:
            ConfigError: An option is not known or does not fit the base.
            CorpusError: There is nothing to learn from.
        """
        base, others = take_base(KIND, options)
        config = build(UnitBPEConfig, others, "tokenizer.options")
        if base.num_codebooks != 1 or getattr(base, "variable_rate", False):
            several = f"{base.num_codebooks} units a frame"
            raise ConfigError(
                f"tokenizer {KIND!r} merges units of one codebook, one a frame; "
                f"{base.fingerprint!r} gives "
                f"{several if base.num_codebooks != 1 else 'units that last unequally long'}: "
                "choose another tokenizer.options.base"
            )
        if config.vocab_size < base.vocab_size:
            raise ConfigError(
                f"expected vocab_size of at least {base.vocab_size}, the base's units, "
                f"got {config.vocab_size}; set tokenizer.options.vocab_size higher"
            )
        spans = _spans(base, config, waves)
        if not spans:
            raise CorpusError("expected recordings to learn merges from, got none of any length")
        units = [_without_repeats(span) for span in spans] if config.collapse else spans
        tensors = {
            "merges": learn(
                units,
                num_units=base.vocab_size,
                vocab_size=config.vocab_size,
                min_count=config.min_count,
            )
        }
        if config.collapse:
            tensors["run_lengths"] = mean_run_lengths(base.vocab_size, tensors["merges"], spans)
        return cls(config, base, tensors)


class UnitBPEStream:
    """One live recording; see :class:`speechlm.protocols.TokenizerStream`."""

    def __init__(self, tokenizer: UnitBPE) -> None:
        self._tokenizer = tokenizer
        self._base = tokenizer.base.stream()
        self._blocks = Blocks(tokenizer.span)
        self.durations = torch.zeros(0, dtype=torch.int64)
        """Frames of every token given so far, int64 [U]."""

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n]; give the tokens now certain, int64 [1, m]."""
        spans = self._blocks.push(self._base.push(samples))
        return self._merged([span[0] for span in spans])

    def finish(self) -> Tensor:
        """Give the tokens still held back, int64 [1, m], and close the stream."""
        spans = [span[0] for span in self._blocks.push(self._base.finish())]
        last = self._blocks.finish()
        if last is not None:
            padded, size = last
            spans.append(padded[0, :size])
        return self._merged(spans)

    def _merged(self, spans: list[Tensor]) -> Tensor:
        tokens, durations = self._tokenizer.merge(spans)
        self.durations = torch.cat([self.durations, durations])
        return tokens[None]


def _span(base: AudioTokenizer, config: UnitBPEConfig) -> int:
    """Frames that are merged at a time."""
    return max(1, round(config.span_s * base.frame_rate))


def _without_repeats(span: Tensor) -> Tensor:
    return collapse_repeats(span[None])[0][0]


def _spans(base: AudioTokenizer, config: UnitBPEConfig, waves: Iterable[Tensor]) -> list[Tensor]:
    """What is merged at a time, int64 [F] each, as it will be when tokenizing."""
    spans: list[Tensor] = []
    left = config.fit_frames
    for wave in waves:
        codes = base.encode(wave[None])[0].codes[0, :left]
        spans += [span for span in torch.split(codes, _span(base, config)) if len(span)]
        left -= len(codes)
        if left <= 0:
            break
    return spans
