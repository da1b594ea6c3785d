"""Which LM id stands for what: control tokens first, then text tokens, then each stream's units.

The order is a rule, never the order of keys in a file, so two vocabularies of one tokenizer
(and one text tokenizer) are always the same vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from speechlm.errors import CheckpointError, FingerprintError, InputError
from speechlm.units import Units

CONTROLS = ("pad", "end", "user", "assistant", "speech", "text", "word")
"""Padding and fill, end of a sequence, who speaks next, a recording on its own (or a span of
speech), a span of text, and a word about to begin in a text stream (Moshi's EPAD)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The ids of one tokenizer's units, and of a text tokenizer's tokens, in an LM.

    Raises:
        InputError: No stream, an empty one, or a text tokenizer of no name or no size.
    """

    tokenizer_fingerprint: str
    """The tokenizer whose units these are."""
    stream_sizes: tuple[int, ...]
    """Units of each stream of the layout, which knows how many streams it makes of the
    tokenizer's codebooks: :meth:`~speechlm.layouts.grid.Layout.stream_sizes`."""
    text_size: int = 0
    """Text tokens; 0 for an LM without text."""
    text_fingerprint: str | None = None
    """The text tokenizer, where there is text."""

    def __post_init__(self) -> None:
        if not self.stream_sizes:
            raise InputError("expected a tokenizer of at least 1 codebook, got K = 0")
        if min(self.stream_sizes) < 1:
            raise InputError(f"expected at least 1 unit a stream, got {min(self.stream_sizes)}")
        if self.text_size < 0 or (self.text_size > 0) != (self.text_fingerprint is not None):
            raise InputError(
                "expected the size and the fingerprint of the text tokenizer, or neither, got "
                f"text_size={self.text_size}, text_fingerprint={self.text_fingerprint!r}"
            )

    @property
    def pad(self) -> int:
        return CONTROLS.index("pad")

    @property
    def end(self) -> int:
        return CONTROLS.index("end")

    @property
    def user(self) -> int:
        return CONTROLS.index("user")

    @property
    def assistant(self) -> int:
        return CONTROLS.index("assistant")

    @property
    def speech(self) -> int:
        return CONTROLS.index("speech")

    @property
    def text(self) -> int:
        return CONTROLS.index("text")

    @property
    def word(self) -> int:
        return CONTROLS.index("word")

    @property
    def first_text(self) -> int:
        """The id of text token 0, where there is text."""
        return len(CONTROLS)

    @property
    def first_unit(self) -> int:
        """The id of unit 0 of stream 0; every id from here on is a unit."""
        return len(CONTROLS) + self.text_size

    @property
    def size(self) -> int:
        return self.first_unit + sum(self.stream_sizes)

    @property
    def text_range(self) -> range:
        """The ids of text tokens; empty without text."""
        return range(self.first_text, self.first_unit)

    def unit_range(self, stream: int) -> range:
        """The ids of one stream's units."""
        first = self.first_unit + sum(self.stream_sizes[:stream])
        return range(first, first + self.stream_sizes[stream])

    @property
    def fingerprint(self) -> str:
        """Names controls, streams and both tokenizers, as ``vocabulary-0123456789abcdef``."""
        described = json.dumps(
            [
                CONTROLS,
                self.text_size,
                self.text_fingerprint,
                self.stream_sizes,
                self.tokenizer_fingerprint,
            ]
        )
        return f"vocabulary-{hashlib.sha256(described.encode()).hexdigest()[:16]}"

    def units_to_ids(self, codes: Tensor) -> Tensor:
        """The ids of units, each stream in its own range.

        Args:
            codes: Units, int64 [K, F], F >= 0.

        Returns:
            int64 [K, F]; :meth:`ids_to_units` undoes it.

        Raises:
            InputError: Another number of streams, or a unit that the tokenizer does not have.
        """
        num_streams = len(self.stream_sizes)
        if codes.ndim != 2 or codes.shape[0] != num_streams:
            raise InputError(f"expected units [{num_streams}, F], got {list(codes.shape)}")
        for stream, row in enumerate(codes):
            check_units(row, self.stream_sizes[stream])
        return codes + self._firsts()

    def ids_to_units(self, ids: Tensor) -> Tensor:
        """The units of ids int64 [K, F] (or [F] of a single stream), as int64 [K, F].

        Raises:
            InputError: An id is not of its row's stream.
        """
        ids = ids[None] if ids.ndim == 1 else ids
        num_streams = len(self.stream_sizes)
        if ids.ndim != 2 or ids.shape[0] != num_streams:
            raise InputError(f"expected ids [{num_streams}, F], got {list(ids.shape)}")
        for stream, row in enumerate(ids):
            allowed = self.unit_range(stream)
            if row.numel() and not (int(row.min()) in allowed and int(row.max()) in allowed):
                raise InputError(
                    f"expected ids of units, {allowed[0]}..{allowed[-1]}, "
                    f"got {int(row.min())}..{int(row.max())}"
                )
        return ids.to(torch.int64) - self._firsts()

    def text_to_ids(self, tokens: Tensor) -> Tensor:
        """The ids of text tokens, any shape.

        Raises:
            InputError: A token that the text tokenizer does not have.
        """
        check_text(tokens, self.text_size)
        return tokens + self.first_text

    def ids_to_text(self, ids: Tensor) -> Tensor:
        """Undo :meth:`text_to_ids`.

        Raises:
            InputError: An id is not a text token's.
        """
        check_text(ids - self.first_text, self.text_size)
        return ids - self.first_text

    def check(self, units: Units) -> None:
        """Refuse units of another tokenizer, or without their repeats.

        Raises:
            FingerprintError: Another tokenizer made them.
            InputError: Repeats are merged, and the layout would lose how long each unit was.
        """
        if units.fingerprint != self.tokenizer_fingerprint:
            raise FingerprintError(
                part="the vocabulary",
                expected=self.tokenizer_fingerprint,
                got=units.fingerprint,
                remedy="tokenize with the tokenizer that the LM was trained on, or train again",
            )
        if units.durations is not None and not units.variable_rate:
            raise InputError("expected units with their repeats, got merged ones; call expand()")

    def check_text(self, fingerprint: str) -> None:
        """Refuse another text tokenizer, even one of the same size.

        Raises:
            FingerprintError: It is not the one that this vocabulary is for.
        """
        if fingerprint != self.text_fingerprint:
            raise FingerprintError(
                part="the vocabulary's text",
                expected=self.text_fingerprint or "no text",
                got=fingerprint,
                remedy="use the text tokenizer that the LM was trained with",
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            "controls": list(CONTROLS),
            "text_size": self.text_size,
            "text_fingerprint": self.text_fingerprint,
            "stream_sizes": list(self.stream_sizes),
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises:
            CheckpointError: A key is missing, or the controls are not this version's.
        """
        missing = {"controls", "stream_sizes", "tokenizer_fingerprint"} - values.keys()
        if missing:
            raise CheckpointError(f"a saved vocabulary lacks {', '.join(sorted(missing))}")
        if tuple(values["controls"]) != CONTROLS:
            raise CheckpointError(
                f"a saved vocabulary has the controls {', '.join(values['controls'])}, "
                f"this version of speechlm has {', '.join(CONTROLS)}; use the version that saved it"
            )
        return cls(
            tokenizer_fingerprint=str(values["tokenizer_fingerprint"]),
            stream_sizes=tuple(int(size) for size in values["stream_sizes"]),
            text_size=int(values.get("text_size", 0)),
            text_fingerprint=values.get("text_fingerprint"),
        )

    def _firsts(self) -> Tensor:
        firsts = [self.unit_range(stream).start for stream in range(len(self.stream_sizes))]
        return torch.tensor(firsts)[:, None]


def check_units(units: Tensor, size: int) -> None:
    """Refuse units of one stream that are not in ``0..size - 1``, with an InputError."""
    if units.numel() and not 0 <= int(units.min()) <= int(units.max()) < size:
        raise InputError(
            f"expected units in 0..{size - 1}, got {int(units.min())}..{int(units.max())}; "
            "tokenize again with the tokenizer that this vocabulary is for"
        )


def check_text(tokens: Tensor, size: int) -> None:
    """Refuse text tokens that are not in ``0..size - 1``, with an InputError."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise InputError(
            f"expected text tokens in 0..{size - 1}, got "
            f"{int(tokens.min())}..{int(tokens.max())}; use the text tokenizer that this "
            "vocabulary is for"
        )
