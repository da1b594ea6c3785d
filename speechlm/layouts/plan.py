"""Plans: which cell of a grid holds which element of the content, or which control token.

All layouts share this file: a layout says its plan for given content, its lenient reading, and
its rules; encoding (a gather), decoding (the reading, checked by encoding again), the ids of a
row and the grammar follow from these.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from speechlm.errors import InputError
from speechlm.layouts.grid import Content, Field, Grammar, Layout, LMSequence, Prompt
from speechlm.layouts.vocabulary import CONTROLS, Vocabulary
from speechlm.units import collapse_repeats

TEXT, CONTROL = -1, -2
"""Kinds of cells besides the number of a stream: a text token, and a control token."""
PAD, END = CONTROLS.index("pad"), CONTROLS.index("end")


Counted = tuple[tuple[str, Tensor], ...]
"""Content in the order in which a plan counts its elements: names and tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What each cell holds; three tensors [R, S]."""

    cells: Tensor
    """int64: an element of the content, counted through its fields; of a control its id."""
    kinds: Tensor
    """int64: a unit's stream, :data:`TEXT` or :data:`CONTROL`."""
    weights: Tensor
    """float32: how much its prediction counts."""

    @property
    def is_content(self) -> Tensor:
        """bool [R, S]."""
        return self.kinds != CONTROL

    def after(self, num_elements: int) -> Plan:
        """The same with its content counted from ``num_elements`` on."""
        return Plan(self.cells + num_elements * self.is_content, self.kinds, self.weights)


def blank(num_rows: int, num_columns: int) -> Plan:
    """Nothing but fill, which weighs nothing."""
    shape = (num_rows, num_columns)
    return Plan(torch.full(shape, PAD), torch.full(shape, CONTROL), torch.zeros(shape))


def mark(name: str, weights: Sequence[float]) -> Plan:
    """A column with the control ``name`` in every row; ``weights`` are the rows'."""
    shape = (len(weights), 1)
    cells = torch.full(shape, CONTROLS.index(name))
    return Plan(cells, torch.full(shape, CONTROL), torch.tensor(weights)[:, None])


def run(kind: int, first: int, stop: int, weight: float) -> Plan:
    """A row of elements ``first .. stop - 1`` of one kind."""
    cells = torch.arange(first, stop)[None]
    return Plan(cells, torch.full_like(cells, kind), torch.full(cells.shape, weight))


def join(plans: Sequence[Plan]) -> Plan:
    """One after another."""
    return Plan(
        torch.cat([plan.cells for plan in plans], dim=1),
        torch.cat([plan.kinds for plan in plans], dim=1),
        torch.cat([plan.weights for plan in plans], dim=1),
    )


def stack(plans: Sequence[Plan], num_columns: int) -> Plan:
    """One below the other, each filled up to ``num_columns``."""
    filled = [
        join([plan, blank(plan.cells.shape[0], num_columns - plan.cells.shape[1])])
        for plan in plans
    ]
    return Plan(
        torch.cat([plan.cells for plan in filled]),
        torch.cat([plan.kinds for plan in filled]),
        torch.cat([plan.weights for plan in filled]),
    )


def check_plan(plan: Plan, num_elements: int) -> None:
    """Assert what makes a plan invertible: every element of the content is in one cell."""
    held = plan.cells[plan.is_content]
    assert torch.equal(held.sort().values, torch.arange(num_elements))


def gather(vocabulary: Vocabulary, plan: Plan, fields: Sequence[Tensor]) -> Tensor:
    """The ids of a plan, int64 [R, S].

    Args:
        fields: The content in the order in which the plan counts it.

    Raises:
        InputError: A unit or token beyond its range.
    """
    firsts, sizes = _ranges(vocabulary)
    elements = torch.cat([*(field.flatten() for field in fields), torch.zeros(1).long()])
    is_content = plan.is_content
    values = elements[plan.cells.where(is_content, torch.tensor(len(elements) - 1))]
    values = values.where(is_content, plan.cells)
    kinds = plan.kinds - CONTROL
    wrong = (values < 0) | (values >= sizes[kinds])
    if bool(wrong.any()):
        kind = int(plan.kinds[wrong][0])
        what = "text tokens" if kind == TEXT else f"units of stream {kind}"
        raise InputError(
            f"expected {what} in 0..{int(sizes[kind - CONTROL]) - 1}, got "
            f"{int(values[wrong][0])}; tokenize with what this vocabulary is for"
        )
    return values + firsts[kinds]


@functools.lru_cache(maxsize=64)
def _ranges(vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """First id and number of ids, of controls, text and each stream, int64 [2 + streams]."""
    units = [vocabulary.unit_range(stream) for stream in range(len(vocabulary.stream_sizes))]
    ranges = [range(len(CONTROLS)), vocabulary.text_range, *units]
    return (
        torch.tensor([ids.start for ids in ranges]),
        torch.tensor([len(ids) for ids in ranges]),
    )


class Rules(Protocol):
    """A grammar in names: what each row may hold, as ``"unit0|end"``, ``"tokens"``, ``"pad"``."""

    start: Hashable

    def at(self, state: Hashable) -> tuple[str, ...]:
        """One name a row."""
        ...

    def all(self) -> Iterable[tuple[str, ...]]:
        """Whatever :meth:`at` can say."""
        ...

    def advance(self, state: Hashable, column: Sequence[int]) -> Hashable | None: ...


class RuleGrammar:
    """Rules with the masks that their names stand for."""

    def __init__(self, rules: Rules, vocabulary: Vocabulary) -> None:
        self.start = rules.start
        self.advance = rules.advance
        self._rules = rules
        self._index = {names: at for at, names in enumerate(dict.fromkeys(rules.all()))}
        distinct = {name: at for at, name in enumerate(dict.fromkeys(sum(self._index, ())))}
        # Much smaller than all masks at once, where there are many rows.
        self._sets = torch.stack([_mask(vocabulary, name) for name in distinct])
        self._row_sets = torch.tensor([[distinct[name] for name in names] for names in self._index])

    def masks_of(self, row: int) -> Tensor:
        return self._sets[self._row_sets[:, row]]

    def mask_of(self, state: Hashable) -> int:
        return self._index[self._rules.at(state)]


def _mask(vocabulary: Vocabulary, name: str) -> Tensor:
    mask = torch.zeros(vocabulary.size, dtype=torch.bool)
    for part in name.split("|"):
        if part == "tokens":
            mask[vocabulary.first_text : vocabulary.first_unit] = True
        elif part.startswith("unit"):
            ids = vocabulary.unit_range(int(part.removeprefix("unit")))
            mask[ids.start : ids.stop] = True
        else:
            mask[CONTROLS.index(part)] = True
    return mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """What a layout was built from, as it is saved."""

    name: str
    num_codebooks: int
    options: tuple[tuple[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_codebooks": self.num_codebooks,
            "options": {key: _listed(value) for key, value in self.options},
        }


def _listed(value: Any) -> Any:
    return [_listed(part) for part in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedLayout(ABC):
    """A layout by its plan, reading and rules; see :class:`~speechlm.layouts.grid.Layout`."""

    spec: Spec

    @property
    @abstractmethod
    def fields(self) -> tuple[Field, ...]: ...

    @property
    @abstractmethod
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        """The kinds that each row holds: streams, and :data:`TEXT`."""

    @abstractmethod
    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        """:meth:`stream_sizes` of the right number of codebooks."""

    @abstractmethod
    def plan(self, content: Content) -> tuple[Plan, Counted]:
        """The plan of a whole sequence, and the content that it counts, in order."""

    @abstractmethod
    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        """The content of a whole sequence int64 [R, S]; anything, or an InputError, of others."""

    @abstractmethod
    def rules(self, vocabulary: Vocabulary) -> Rules:
        """What may follow a prompt."""

    @abstractmethod
    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt: ...

    @abstractmethod
    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]: ...

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def num_rows(self) -> int:
        return len(self.row_kinds)

    @property
    def num_streams(self) -> int:
        """Streams of the vocabulary."""
        return 1 + max(max(kinds) for kinds in self.row_kinds)

    @property
    def has_text(self) -> bool:
        return any(TEXT in kinds for kinds in self.row_kinds)

    def stream_sizes(self, codebook_sizes: Sequence[int]) -> tuple[int, ...]:
        if len(codebook_sizes) != self.spec.num_codebooks:
            raise InputError(
                f"the layout {self.name!r} was built for {self.spec.num_codebooks} codebooks, the "
                f"tokenizer has {len(codebook_sizes)}; build it for that tokenizer"
            )
        return self.streams_for(tuple(codebook_sizes))

    def check(self, vocabulary: Vocabulary) -> None:
        if len(vocabulary.stream_sizes) != self.num_streams:
            raise InputError(
                f"the layout {self.name!r} needs a vocabulary of {self.num_streams} streams, "
                f"got one of {len(vocabulary.stream_sizes)}; choose a layout for "
                f"{len(vocabulary.stream_sizes)} codebooks, or another tokenizer"
            )
        if self.has_text and not vocabulary.text_size:
            raise InputError(
                f"the layout {self.name!r} needs text, and the vocabulary has none; "
                "give it a text tokenizer"
            )

    def row_ids(self, vocabulary: Vocabulary) -> tuple[Tensor, ...]:
        self.check(vocabulary)
        return _row_ids(vocabulary, self.row_kinds)

    def encode(self, vocabulary: Vocabulary, content: Content) -> LMSequence:
        self.check(vocabulary)
        plan, counted = self.plan(content)
        ids = gather(vocabulary, plan, [field for _, field in counted])
        plan.weights[:, 0] = 0.0
        return LMSequence(ids=ids, loss_weights=plan.weights)

    def decode(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        self.check(vocabulary)
        try:
            content = self.parse(vocabulary, ids)
            if torch.equal(self.encode(vocabulary, content).ids, ids):
                return content
        except InputError as error:
            raise InputError(f"{self._expected()} ({error})") from error
        raise InputError(self._expected())

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        self.check(vocabulary)
        return _grammar(self, vocabulary)

    def to_dict(self) -> dict[str, Any]:
        return self.spec.to_dict()

    def _expected(self) -> str:
        return f"expected the ids of one whole sequence of the layout {self.name!r}"


@functools.lru_cache(maxsize=16)
def _row_ids(vocabulary: Vocabulary, row_kinds: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    # Controls are in every row: they are few, and the rows of one stream without text are then
    # one run of ids, which a softmax takes without gathering.
    firsts, sizes = _ranges(vocabulary)
    rows = []
    for kinds in row_kinds:
        ranges = [kind - CONTROL for kind in sorted((CONTROL, *kinds))]
        rows.append(torch.cat([torch.arange(int(sizes[at])) + firsts[at] for at in ranges]))
    return tuple(rows)


@functools.lru_cache(maxsize=16)
def _grammar(layout: PlannedLayout, vocabulary: Vocabulary) -> RuleGrammar:
    return RuleGrammar(layout.rules(vocabulary), vocabulary)


def units_field(content: Content, name: str, num_streams: int) -> Tensor:
    """``content[name]``, units int64 [K, F].

    Raises:
        InputError: Of another shape or type.
    """
    codes = content[name]
    if codes.ndim != 2 or codes.shape[0] != num_streams or codes.dtype != torch.int64:
        raise InputError(
            f"expected {name} as units int64 [{num_streams}, F], got {codes.dtype} "
            f"{list(codes.shape)}"
        )
    return codes


def text_field(content: Content, name: str) -> Tensor:
    """``content[name]``, text tokens int64 [T].

    Raises:
        InputError: Of another shape or type.
    """
    tokens = content[name]
    if tokens.ndim != 1 or tokens.dtype != torch.int64:
        raise InputError(
            f"expected {name} as tokens int64 [T], got {tokens.dtype} {list(tokens.shape)}"
        )
    return tokens


def without_text(content: Content) -> Content:
    """Speech that comes without its text, as with an empty one."""
    spoken = next((name for name in ("speech", "answer", "self") if name in content), None)
    if spoken is None or "text" in content:
        return content
    empty = torch.zeros(0, dtype=torch.int64)
    return {"text": empty, "words": empty.view(0, 2), **content}


def merged_by(layout: Layout, codes: Tensor) -> tuple[Tensor, Tensor] | None:
    """What a layout that merges repeats lays out of units int64 [K, F]; None where it does not.

    Returns:
        The units that are laid out, int64 [K, U], and how many frames each lasts, int64 [U].
    """
    if not getattr(layout, "collapse", False):
        return None
    merge: Callable[[Tensor], tuple[Tensor, Tensor]] = getattr(layout, "merged", collapse_repeats)
    return merge(codes)


def check_fields(layout: str, content: Content, *allowed: Iterable[str]) -> frozenset[str]:
    """The names in ``content``.

    Raises:
        InputError: They are none of the combinations ``allowed``.
    """
    names = frozenset(content)
    if names not in {frozenset(fields) for fields in allowed}:
        known = " or ".join("{" + ", ".join(fields) + "}" for fields in allowed)
        raise InputError(f"the layout {layout!r} takes {known}, got {{{', '.join(content)}}}")
    return names


def column_of(ids: Tensor, control: int) -> int:
    """The first column that holds a control in its first row; the length if none does."""
    found = (ids[0] == control).nonzero().flatten()
    return int(found[0]) if len(found) else ids.shape[1]
