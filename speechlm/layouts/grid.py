"""What every layout has in common: content on one side, a grid of LM ids on the other.

A layout is a *plan*: for every cell of the grid, which element of the content it holds, or which
control token. Encoding gathers along the plan, decoding scatters back, so the one undoes the
other. What may be generated after a prompt is a :class:`Grammar`.

A grid has R rows (parallel streams as the LM sees them) and S columns (LM positions). The
decoder reads a column as the sum of its R embeddings; row r predicts one of its own ids.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from speechlm.errors import InputError
from speechlm.layouts.vocabulary import Vocabulary

Content = Mapping[str, Tensor]
"""Fields by name: units int64 [K, F], text int64 [T] (the text tokenizer's own ids), and what
the layout's :attr:`Layout.fields` say besides."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LMSequence:
    """One sequence as the LM sees it."""

    ids: Tensor
    """int64 [R, S]."""
    loss_weights: Tensor
    """How much the prediction of each id counts, float32 [R, S]; 0 in the first column."""

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.loss_weights.shape:
            raise InputError(
                f"expected ids and loss weights [R, S], got {list(self.ids.shape)} and "
                f"{list(self.loss_weights.shape)}"
            )

    def __len__(self) -> int:
        """LM positions, S."""
        return self.ids.shape[1]

    @property
    def num_rows(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompt:
    """What is known before generation."""

    ids: Tensor
    """The columns that are known whole, int64 [R, S], S >= 1."""
    given: Tensor
    """Cells already known of the columns to come, int64 [R, n], n >= 0; -1 where free. A given
    cell stands whatever the grammar says of it."""
    state: Hashable | None = None
    """Where the grammar begins after this prompt; None: at :attr:`Grammar.start`."""

    def __len__(self) -> int:
        return self.ids.shape[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One thing that a layout lays out."""

    name: str
    kind: Literal["units", "text", "words", "spans"]
    """units int64 [K, F]; text int64 [T]; words int64 [W, 2], each the frame at which it begins
    and its text tokens; spans int64 [N, 2], each 0 for text or 1 for speech and its length."""
    num_streams: int = 1
    """K, of units."""
    optional: bool = False


class Grammar(Protocol):
    """What may come next: a finite automaton over columns, with small hashable states."""

    start: Hashable

    def masks_of(self, row: int) -> Tensor:
        """What may come next in a row, in each of M ways for all rows: bool [M, V]."""
        ...

    def mask_of(self, state: Hashable) -> int:
        """Which of them holds in a state."""
        ...

    def advance(self, state: Hashable, column: Sequence[int]) -> Hashable | None:
        """The state after a column of R ids; None: this column ended the sequence."""
        ...


class Layout(Protocol):
    """How content becomes a grid of ids, and back. Data: frozen, hashable, saved with the LM."""

    @property
    def name(self) -> str: ...

    @property
    def num_rows(self) -> int:
        """R."""
        ...

    @property
    def fields(self) -> tuple[Field, ...]: ...

    def stream_sizes(self, codebook_sizes: Sequence[int]) -> tuple[int, ...]:
        """The vocabulary's streams for a tokenizer of these codebooks.

        Two cells of one column never share ids (their sum would not tell them apart), so groups
        and a second speaker have streams of their own.

        Raises:
            InputError: The layout is for another number of codebooks.
        """
        ...

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a vocabulary whose streams, or lack of text, do not fit.

        Raises:
            InputError: With the numbers, in one line.
        """
        ...

    def row_ids(self, vocabulary: Vocabulary) -> tuple[Tensor, ...]:
        """The ids that each row may hold, sorted, R tensors int64 [V_r]."""
        ...

    def encode(self, vocabulary: Vocabulary, content: Content) -> LMSequence:
        """Lay out a whole sequence."""
        ...

    def decode(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`encode`.

        Raises:
            InputError: ``ids`` [R, S] are not one whole sequence of this layout.
        """
        ...

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """What is known before generation, of the fields that are."""
        ...

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        """What may follow a prompt."""
        ...

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        """The generated columns int64 [R, n] as content: the generated fields only.

        Whatever the grammar lets pass can be read, also when it was cut off: frames that are
        not complete are left out.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Undone by :func:`speechlm.layouts.registry.layout_from_dict`."""
        ...
