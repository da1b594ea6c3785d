"""Units to tokens by byte pairs, and back; what tokenizer and vocoder ``unit-bpe`` share.

Every unit is a character to Hugging Face's ``tokenizers``, which learns merges and applies them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from speechlm.errors import InputError, PluginError
from speechlm.units import collapse_repeats

FIRST_CHARACTER = 0x10000
"""Unit u is written as this code point and u: none from here on is a surrogate."""


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


def learn(spans: Iterable[Tensor], *, num_units: int, vocab_size: int, min_count: int) -> Tensor:
    """Learn which tokens become one.

    Args:
        spans: Units, int64 [F] each; nothing is merged over their edges.
        num_units: The units that there are.
        vocab_size: Most tokens, the units included.
        min_count: A pair must come as often to become a token.

    Returns:
        Pairs of tokens, int64 [M, 2], in the order in which they become one.
    """
    library = _library()
    learner = library.Tokenizer(library.models.BPE(cache_capacity=0))
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        show_progress=False,
        special_tokens=[],
        # Sorted by code point, they get the units' own numbers as ids.
        initial_alphabet=[chr(FIRST_CHARACTER + unit) for unit in range(num_units)],
    )
    learner.train_from_iterator((_text(span) for span in spans), trainer)
    model = json.loads(learner.to_str())["model"]
    ids = [[model["vocab"][piece] for piece in pair] for pair in model["merges"]]
    return torch.tensor(ids, dtype=torch.int64).reshape(-1, 2)


def mean_run_lengths(num_units: int, pairs: Tensor, spans: Iterable[Tensor]) -> Tensor:
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


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise PluginError(
            "tokenizer 'unit-bpe' needs Hugging Face's 'tokenizers': pip install tokenizers"
        ) from error
