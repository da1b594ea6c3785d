"""``unit-bpe``: what a tokenizer says often in a row becomes one token.

Byte-pair encoding of the units of any fitted tokenizer of one codebook: every unit is a
character, merges are learnt on a corpus by Hugging Face's ``tokenizers``. An LM then reads and
writes two to four times fewer positions a second.

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

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError, CorpusError, InputError, PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.plugins import TOKENIZERS
from speechlm.protocols import AudioTokenizer
from speechlm.streaming import Blocks
from speechlm.units import Units, collapse_repeats
from speechlm_tokenizers.wrapping import pack, take_base, unpack

KIND = "unit-bpe"
FIRST_CHARACTER = 0x10000
"""Unit u is written as this code point and u: none from here on is a surrogate."""


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


class TokenTable:
    """Which units each token stands for.

    Args:
        units: Of one token after another, int64 [P].
        sizes: How many of them each token has, int64 [V].
        run_lengths: Mean frames of each of ``units``, float64 [P], where repeats are merged;
            None where a unit is a frame.
    """

    def __init__(self, units: Tensor, sizes: Tensor, run_lengths: Tensor | None) -> None:
        self.units, self.sizes, self.run_lengths = units, sizes, run_lengths
        self._starts = sizes.cumsum(0) - sizes
        if run_lengths is not None:
            self._shares = _shares(run_lengths, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def expand(self, tokens: Tensor, durations: Tensor | None = None) -> Tensor:
        """The base's units.

        Args:
            tokens: int64 [U].
            durations: Frames of each, int64 [U]; where repeats are merged and None is given,
                units last as long as they do on average.

        Returns:
            int64 [F]; ``F == durations.sum()``.

        Raises:
            InputError: A token that there is not, or that cannot last so long.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(self):
            raise InputError(
                f"expected tokens within 0..{len(self) - 1}, "
                f"got {int(tokens.min())}..{int(tokens.max())}"
            )
        sizes = self.sizes[tokens]
        if durations is not None:
            self._check(tokens, sizes, durations)
        places = self.places(tokens)
        units = self.units[places]
        if self.run_lengths is None:
            return units
        if durations is None:
            return units.repeat_interleave(self.run_lengths[places].round().clamp(min=1).long())
        # Each unit has one frame, and of the others its share, rounded where it ends.
        spare = (durations - sizes).repeat_interleave(sizes)
        ends = (self._shares[places] * spare + 0.5).floor().long()
        begins = ends.roll(1)
        begins[sizes.cumsum(0) - sizes] = 0
        return units.repeat_interleave(1 + ends - begins)

    def places(self, tokens: Tensor) -> Tensor:
        """Where the units of tokens int64 [U] are in ``units``, one after another."""
        sizes = self.sizes[tokens]
        first = (self._starts[tokens] - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)
        return first + torch.arange(len(first))

    def _check(self, tokens: Tensor, sizes: Tensor, durations: Tensor) -> None:
        wrong = durations < sizes if self.run_lengths is not None else durations != sizes
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            least = "at least " * (self.run_lengths is not None)
            raise InputError(
                f"token {int(tokens[at])} lasts {least}{int(sizes[at])} frames, "
                f"got a duration of {int(durations[at])}"
            )


class Merges:
    """Units to tokens, a span at a time.

    Args:
        num_units: Of the base.
        pairs: The tokens that become one, int64 [M, 2], in the order in which they do.
        run_lengths: See :class:`TokenTable`; None not to merge repeats first.
    """

    def __init__(self, num_units: int, pairs: Tensor, run_lengths: Tensor | None) -> None:
        library = _library()
        pieces = _pieces(num_units, pairs)
        vocab = {piece: token for token, piece in enumerate(pieces)}
        merges = [(pieces[left], pieces[right]) for left, right in pairs.tolist()]
        # Without a cache: spans hardly ever come twice, and one of whole spans would grow.
        model = library.models.BPE(vocab=vocab, merges=merges, cache_capacity=0)
        self._tokenizer = library.Tokenizer(model)
        self.table = TokenTable(
            torch.tensor([_unit(character) for piece in pieces for character in piece]),
            torch.tensor([len(piece) for piece in pieces]),
            run_lengths,
        )

    def apply(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of a span.

        Args:
            units: The base's, int64 [F].

        Returns:
            tokens: int64 [U].
            durations: Frames of each, int64 [U], F in all.
        """
        lengths = None
        if self.table.run_lengths is not None:
            merged, lengths = collapse_repeats(units[None])
            units = merged[0]
        tokens = torch.tensor(self._tokenizer.encode(_text(units)).ids, dtype=torch.int64)
        durations = self.table.sizes[tokens]
        if lengths is not None:
            ends = lengths.cumsum(0)[durations.cumsum(0) - 1]
            durations = ends.diff(prepend=ends.new_zeros(1))
        return tokens, durations


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
        tensors = {"merges": _learn(config, base.vocab_size, units)}
        if config.collapse:
            tensors["run_lengths"] = _mean_run_lengths(base.vocab_size, tensors["merges"], spans)
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


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise PluginError(
            f"tokenizer {KIND!r} needs Hugging Face's 'tokenizers': pip install tokenizers"
        ) from error


def _span(base: AudioTokenizer, config: UnitBPEConfig) -> int:
    """Frames that are merged at a time."""
    return max(1, round(config.span_s * base.frame_rate))


def _without_repeats(span: Tensor) -> Tensor:
    return collapse_repeats(span[None])[0][0]


def _text(units: Tensor) -> str:
    return "".join(chr(FIRST_CHARACTER + unit) for unit in units.tolist())


def _unit(character: str) -> int:
    return ord(character) - FIRST_CHARACTER


def _pieces(num_units: int, pairs: Tensor) -> list[str]:
    """Each token as text, in the order of their ids: units first, then what pairs gave."""
    pieces = [chr(FIRST_CHARACTER + unit) for unit in range(num_units)]
    known = set(pieces)
    for left, right in pairs.tolist():
        piece = pieces[left] + pieces[right]
        if piece not in known:  # two pairs may give one token
            known.add(piece)
            pieces.append(piece)
    return pieces


def _learn(config: UnitBPEConfig, num_units: int, spans: list[Tensor]) -> Tensor:
    """The merges, int64 [M, 2], in the order in which they apply."""
    library = _library()
    learner = library.Tokenizer(library.models.BPE(cache_capacity=0))
    trainer = library.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_count,
        show_progress=False,
        special_tokens=[],
        # Sorted by code point, they get the units' own numbers as ids.
        initial_alphabet=[chr(FIRST_CHARACTER + unit) for unit in range(num_units)],
    )
    learner.train_from_iterator((_text(span) for span in spans), trainer)
    model = json.loads(learner.to_str())["model"]
    ids = [[model["vocab"][piece] for piece in pair] for pair in model["merges"]]
    return torch.tensor(ids, dtype=torch.int64).reshape(-1, 2)


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


def _mean_run_lengths(num_units: int, pairs: Tensor, spans: Iterable[Tensor]) -> Tensor:
    """How many frames each unit of each token lasts on average, float32 [P]."""
    num_places = sum(map(len, _pieces(num_units, pairs)))
    merges = Merges(num_units, pairs, torch.ones(num_places))
    sums, counts = torch.zeros(2, num_places, dtype=torch.float64)
    for span in spans:
        places = merges.table.places(merges.apply(span)[0])
        sums.index_add_(0, places, collapse_repeats(span[None])[1].double())
        counts.index_add_(0, places, torch.ones(len(places), dtype=torch.float64))
    # A token that only went into longer ones lasts as its units do elsewhere.
    by_unit = torch.zeros(2, num_units, dtype=torch.float64)
    by_unit.index_add_(1, merges.table.units, torch.stack([sums, counts]))
    elsewhere = (by_unit[0] / by_unit[1].clamp(min=1)).clamp(min=1)[merges.table.units]
    return torch.where(counts > 0, sums / counts.clamp(min=1), elsewhere).float()


def _shares(run_lengths: Tensor, sizes: Tensor) -> Tensor:
    """Which part of a token's frames beyond one a unit is over when each unit ends."""
    # A little for all, so that what never lasted more than a frame still can.
    spare = (run_lengths - 1).clamp(min=0) + 1e-3
    shares = [part.cumsum(0) / part.sum() for part in torch.split(spare, sizes.tolist())]
    return torch.cat(shares)
