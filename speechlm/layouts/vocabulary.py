"""Which LM id stands for which unit: control tokens first, then the units of each stream.

The order is a rule, never the order of keys in a file, so two vocabularies of one tokenizer
are always the same vocabulary.
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

CONTROLS = ("pad", "end", "user", "assistant", "speech")
"""Padding, end of a sequence, who speaks next, and a recording on its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The ids of one tokenizer's units in an LM.

    Raises:
        InputError: More than one stream; a single one is what the layouts lay out so far.
    """

    tokenizer_fingerprint: str
    """The tokenizer whose units these are."""
    stream_sizes: tuple[int, ...]
    """Units of each stream."""

    def __post_init__(self) -> None:
        if len(self.stream_sizes) != 1:
            raise InputError(
                "expected a tokenizer of 1 codebook, which is what the conversation layout "
                f"supports, got {len(self.stream_sizes)}; choose a tokenizer of one stream"
            )
        if self.stream_sizes[0] < 1:
            raise InputError(f"expected at least 1 unit a stream, got {self.stream_sizes[0]}")

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
    def first_unit(self) -> int:
        """The id of unit 0 of the first stream; every id from here on is a unit."""
        return len(CONTROLS)

    @property
    def size(self) -> int:
        return len(CONTROLS) + sum(self.stream_sizes)

    @property
    def fingerprint(self) -> str:
        """Names the controls, the streams and the tokenizer, as ``vocabulary-0123456789abcdef``."""
        described = json.dumps([CONTROLS, self.stream_sizes, self.tokenizer_fingerprint])
        return f"vocabulary-{hashlib.sha256(described.encode()).hexdigest()[:16]}"

    def units_to_ids(self, codes: Tensor) -> Tensor:
        """The ids of units.

        Args:
            codes: Units, int64 [K, F], F >= 0.

        Returns:
            int64 [F] for the one stream; :meth:`ids_to_units` undoes it.

        Raises:
            InputError: Another number of streams, or a unit that the tokenizer does not have.
        """
        if codes.ndim != 2 or codes.shape[0] != len(self.stream_sizes):
            raise InputError(
                f"expected units [{len(self.stream_sizes)}, F], got {list(codes.shape)}"
            )
        size = self.stream_sizes[0]
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise InputError(
                f"expected units in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}; "
                "tokenize again with the tokenizer that this vocabulary is for"
            )
        return codes[0] + self.first_unit

    def ids_to_units(self, ids: Tensor) -> Tensor:
        """The units of ids int64 [F], as int64 [K, F].

        Raises:
            InputError: An id is a control or beyond the vocabulary.
        """
        if ids.numel() and not self.first_unit <= int(ids.min()) <= int(ids.max()) < self.size:
            raise InputError(
                f"expected ids of units, {self.first_unit}..{self.size - 1}, "
                f"got {int(ids.min())}..{int(ids.max())}"
            )
        return (ids.to(torch.int64) - self.first_unit)[None]

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
        if units.durations is not None:
            raise InputError("expected units with their repeats, got merged ones; call expand()")

    def to_dict(self) -> dict[str, Any]:
        return {
            "controls": list(CONTROLS),
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
        )
