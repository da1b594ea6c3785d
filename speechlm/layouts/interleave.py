"""Text and speech in one row, in turn: spans of any length, or chunks of a fixed one.

====================================================  ==================
``[speech] u … [text] t … [speech] u … [end]``        InterleaveWords
``[user] q … [assistant] 13 t, 26 u, 13 t, … [end]``  InterleaveChunks
====================================================  ==================
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from speechlm.errors import ConfigError, InputError
from speechlm.layouts.grid import Content, Field, Prompt
from speechlm.layouts.plan import (
    END,
    TEXT,
    Counted,
    Plan,
    PlannedLayout,
    Rules,
    check_fields,
    column_of,
    gather,
    join,
    mark,
    run,
    text_field,
    units_field,
    without_text,
)
from speechlm.layouts.vocabulary import Vocabulary

SPANS = ("text", "speech")
"""What 0 and 1 in the field ``spans`` stand for, and the marks before such spans."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InterleaveWords(PlannedLayout):
    """Fields ``text`` [T], ``speech`` [1, F] and ``spans`` [N, 2]: which follows which, how long.

    ``speech`` by itself is one span of it.

    The spans, alternately 0 (text) and 1 (speech), take the text and the speech in order. None
    is empty, except a single one, which is text or speech of length 0.
    """

    text_weight: float = 1.0
    """How much each text token counts in the loss; units and marks count 1."""

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field(name="text", kind="text"),
            Field(name="speech", kind="units"),
            Field(name="spans", kind="spans"),
        )

    @property
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        return ((TEXT, 0),)

    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        return codebook_sizes

    def plan(self, content: Content) -> tuple[Plan, Counted]:
        content = self._all_fields(content)
        lengths = content["spans"][:, 1].tolist()
        if len(lengths) > 1 and 0 in lengths:
            raise InputError(f"expected no empty span among several, got lengths {lengths}")
        plan, counted = self._plan_spans(content)
        return join([plan, mark("end", [1.0])]), counted

    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        return self._read_spans(vocabulary, ids[0])

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return WordRules(vocabulary)

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """What is known, to be continued; a last span of length 0 says what comes next.

        ``spans`` [[1, F], [0, 0]] asks for text after speech (recognition), [[0, T], [1, 0]] for
        speech after text (synthesis).
        """
        self.check(vocabulary)
        content = self._all_fields(content)
        lengths = content["spans"][:, 1].tolist()
        if 0 in lengths[:-1]:
            raise InputError(f"expected no empty span but the last, got lengths {lengths}")
        plan, counted = self._plan_spans(content)
        ids = gather(vocabulary, plan, [field for _, field in counted])
        state = SPANS[int(content["spans"][-1, 0])]
        if not lengths[-1]:
            state += "-first" if len(lengths) == 1 else "-begun"
        return Prompt(ids=ids, given=ids[:, :0], state=state)

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        marks = [vocabulary.text, vocabulary.speech]
        opened = prompt.ids[0][torch.isin(prompt.ids[0], torch.tensor(marks))][-1:]
        content = self._read_spans(vocabulary, torch.cat([opened, ids[0]]))
        spans = content["spans"]
        return {**content, "spans": spans[(spans[:, 1] > 0) | (len(spans) == 1)]}

    def _all_fields(self, content: Content) -> Content:
        names = check_fields(self.name, content, (*SPANS, "spans"), ("speech",))
        if "spans" in names:
            return content
        spans = torch.tensor([[1, content["speech"].shape[-1]]])
        return {"text": spans[:0, 0], "speech": content["speech"], "spans": spans}

    def _plan_spans(self, content: Content) -> tuple[Plan, Counted]:
        text, speech = text_field(content, "text"), units_field(content, "speech", 1)
        spans = content["spans"]
        kinds = spans[:, 0].tolist() if spans.ndim == 2 and spans.shape[1] == 2 else []
        totals = [int(spans[spans[:, 0] == kind, 1].sum()) for kind in (0, 1)] if kinds else []
        alternate = all(a + b == 1 for a, b in pairwise(kinds))
        if not kinds or not alternate or not set(kinds) <= {0, 1} or int(spans[:, 1].min()) < 0:
            raise InputError(
                "expected spans int64 [N, 2], N >= 1, alternately of 0 (text) and 1 (speech), "
                f"each with its length, got {spans.tolist()}"
            )
        if totals != [len(text), speech.shape[1]]:
            raise InputError(
                f"expected spans of {len(text)} tokens and {speech.shape[1]} units in all, "
                f"got {totals[0]} and {totals[1]}"
            )
        weights, taken, parts = (self.text_weight, 1.0), [0, len(text)], []
        for kind, length in spans.tolist():
            stop = taken[kind] + length
            parts.append(mark(SPANS[kind], [1.0]))
            parts.append(run(TEXT if kind == 0 else 0, taken[kind], stop, weights[kind]))
            taken[kind] = stop
        return join(parts), (("text", text), ("speech", speech))

    @staticmethod
    def _read_spans(vocabulary: Vocabulary, row: Tensor) -> dict[str, Tensor]:
        row = row[: column_of(row[None], vocabulary.end)]
        opens = ((row == vocabulary.text) | (row == vocabulary.speech)).nonzero().flatten()
        lengths = opens.diff(append=torch.tensor([len(row)])) - 1
        kinds = (row[opens] == vocabulary.speech).long()
        return {
            **texts_and_units(vocabulary, row, "text", "speech"),
            "spans": torch.stack([kinds, lengths], dim=1),
        }


class WordRules:
    """A span goes on, the other kind begins, or all ends; a span just begun is not empty.

    A state is a kind of span, with ``-begun`` right after its mark, ``-first`` after the first
    mark of all, where the end may come at once.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._marks = {vocabulary.text: "text-begun", vocabulary.speech: "speech-begun"}
        self.start: Hashable = "speech"
        self._names = {
            "text": ("tokens|speech|end",),
            "text-begun": ("tokens",),
            "text-first": ("tokens|end",),
            "speech": ("unit0|text|end",),
            "speech-begun": ("unit0",),
            "speech-first": ("unit0|end",),
        }

    def at(self, state: Any) -> tuple[str, ...]:
        return self._names[state]

    def all(self) -> Iterable[tuple[str, ...]]:
        return self._names.values()

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        if column[0] == END:
            return None
        return self._marks.get(column[0], str(state).partition("-")[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class InterleaveChunks(PlannedLayout):
    """Fields ``text`` [T] and ``speech`` [1, F], or ``question``, ``text`` and ``answer``.

    Chunks of text and of units take turns, text first; once one of them is used up, the rest of
    the other follows. Speech may come without its text.
    """

    text_chunk: int
    speech_chunk: int
    text_weight: float = 1.0
    """How much each text token counts in the loss; units and the end count 1."""
    question_weight: float = 0.0

    def __post_init__(self) -> None:
        if min(self.text_chunk, self.speech_chunk) < 1:
            raise ConfigError(
                "expected chunks of at least 1 token and 1 unit, got "
                f"{self.text_chunk}:{self.speech_chunk}"
            )

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field(name="text", kind="text"),
            *(
                Field(name=name, kind="units", optional=True)
                for name in ("speech", "question", "answer")
            ),
        )

    @property
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        return ((TEXT, 0),)

    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        return codebook_sizes

    def plan(self, content: Content) -> tuple[Plan, Counted]:
        plan, counted = self._plan_known(content)
        return join([plan, mark("end", [1.0])]), counted

    def _plan_known(self, content: Content) -> tuple[Plan, Counted]:
        """All but the end."""
        names = check_fields(
            self.name,
            content,
            ("text", "speech"),
            ("question", "text", "answer"),
            ("speech",),
            ("question", "answer"),
        )
        content = without_text(content)
        asked = units_field(content, "question", 1) if "question" in names else None
        said = "speech" if asked is None else "answer"
        text, units = text_field(content, "text"), units_field(content, said, 1)
        parts, text_at, units_at = [], 0, 0
        num_text, num_units = len(text), units.shape[1]
        while text_at < num_text or units_at < num_units:
            text_to = min(text_at + self.text_chunk, num_text)
            units_to = min(units_at + self.speech_chunk, num_units)
            parts.append(run(TEXT, text_at, text_to, self.text_weight))
            parts.append(run(0, num_text + units_at, num_text + units_to, 1.0))
            text_at, units_at = text_to, units_to
        if asked is None:
            start = mark("speech", [0.0])
            return join([start, *parts]), (("text", text), (said, units))
        start = ask(asked.shape[1], self.question_weight)
        counted = (("question", asked), ("text", text), (said, units))
        return join([start, *(part.after(asked.numel()) for part in parts)]), counted

    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        if ids.shape[1] and int(ids[0, 0]) == vocabulary.user:
            turn = column_of(ids, vocabulary.assistant)
            question = ids[:, 1:turn] - vocabulary.first_unit
            said = texts_and_units(vocabulary, ids[0, turn:], "text", "answer")
            return {"question": question, **said}
        return texts_and_units(vocabulary, ids[0], "text", "speech")

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return ChunkRules(self.text_chunk, self.speech_chunk, vocabulary)

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """A ``question`` to be answered, or ``speech`` (and its ``text``) to be gone on from."""
        self.check(vocabulary)
        names = check_fields(self.name, content, ("question",), ("text", "speech"), ("speech",))
        if "question" in names:
            question = units_field(content, "question", 1)
            ids = gather(vocabulary, ask(question.shape[1], self.question_weight), [question])
            return Prompt(ids=ids, given=ids[:, :0])
        plan, counted = self._plan_known(content)
        ids = gather(vocabulary, plan, [field for _, field in counted])
        rules = self.rules(vocabulary)
        state: Hashable | None = rules.start
        for column in ids[:, 1:].T.tolist():
            state = rules.advance(state, column)
        return Prompt(ids=ids, given=ids[:, :0], state=state)

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        said = "answer" if int(prompt.ids[0, 0]) == vocabulary.user else "speech"
        return texts_and_units(vocabulary, ids[0], "text", said)


class ChunkRules:
    """Count the chunk; one that stops short says that its kind is used up.

    A state is ``(kind, cells of the chunk so far)``, kind "tokens" or "unit0", or
    ``(kind, -1)`` once only that kind is left.
    """

    def __init__(self, text_chunk: int, speech_chunk: int, vocabulary: Vocabulary) -> None:
        self._text_chunk, self._speech_chunk = text_chunk, speech_chunk
        self._first_unit = vocabulary.first_unit
        self.start: Hashable = ("tokens", 0)

    def at(self, state: Any) -> tuple[str, ...]:
        kind, count = state
        return (f"{kind}|end" if count < 0 else "tokens|unit0|end",)

    def all(self) -> Iterable[tuple[str, ...]]:
        return [("tokens|unit0|end",), ("tokens|end",), ("unit0|end",)]

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        kind, count = state
        if column[0] == END:
            return None
        came = "unit0" if column[0] >= self._first_unit else "tokens"
        if count < 0:
            return (kind, count)
        if kind == "tokens":
            if came == "tokens":  # past a whole chunk: no units are left to come between
                return (kind, count + 1 if count < self._text_chunk else -1)
            if count < self._text_chunk:
                return (came, -1)
            count = 0
        elif came == "tokens":  # the units stopped short
            return (came, -1)
        return (came, count + 1) if count + 1 < self._speech_chunk else ("tokens", 0)


def ask(num_frames: int, weight: float) -> Plan:
    """``[user] question [assistant]`` in one row of one stream."""
    question = run(0, 0, num_frames, weight)
    return join([mark("user", [0.0]), question, mark("assistant", [weight])])


def texts_and_units(
    vocabulary: Vocabulary, row: Tensor, text_name: str, units_name: str
) -> dict[str, Tensor]:
    """The text tokens [T] and the units of the first stream [1, F] in a row of ids."""
    tokens = row[(row >= vocabulary.first_text) & (row < vocabulary.first_unit)]
    units = row[row >= vocabulary.first_unit]
    return {
        text_name: tokens - vocabulary.first_text,
        units_name: (units - vocabulary.first_unit)[None],
    }
