"""Chain of modality: what was heard as text, the answer as text, then the answer itself.

``[user] q … [text] heard … [text] answer … [assistant] u … [end]``

Source: Zhang et al. 2023 (SpeechGPT), arXiv:2305.11000.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechlm.layouts.grid import Content, Field, Prompt
from speechlm.layouts.patterns import Stages
from speechlm.layouts.plan import (
    TEXT,
    Counted,
    Plan,
    PlannedLayout,
    Rules,
    check_fields,
    gather,
    join,
    mark,
    run,
    text_field,
    units_field,
)
from speechlm.layouts.vocabulary import CONTROLS, Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain(PlannedLayout):
    """Fields ``question``, ``question_text``, ``answer_text``, ``answer``: each after the last.

    Or ``speech`` by itself, ``[speech] u … [end]``.

    The model first writes what it heard and what it will say, then says it.
    """

    num_codebooks: int
    """K; the codebooks of a frame one after another."""
    question_text: bool = True
    answer_text: bool = True
    """Whether these parts are there."""
    text_weight: float = 1.0
    """How much text, and the mark that ends it, counts in the loss; the answer counts 1."""
    question_weight: float = 0.0

    @property
    def fields(self) -> tuple[Field, ...]:
        names = [*(name for name, _ in self._parts), "speech"]
        return tuple(
            Field(name=name, kind="text", optional=True)
            if name.endswith("text")
            else Field(name=name, kind="units", num_streams=self.num_codebooks, optional=True)
            for name in names
        )

    @property
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        streams = tuple(range(self.num_codebooks))
        return ((TEXT, *streams) if len(self._parts) > 2 else streams,)

    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        return codebook_sizes

    def plan(self, content: Content) -> tuple[Plan, Counted]:
        names = check_fields(self.name, content, [name for name, _ in self._parts], ("speech",))
        if "speech" in names:
            return self._plan_speech(content, end=True)
        return self._plan_parts(content)

    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        if ids.shape[1] and int(ids[0, 0]) == vocabulary.speech:
            return {"speech": self._pattern.read(vocabulary, ids[:, 1:])}
        return self._read_parts(vocabulary, ids[0, 1:], 0)

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return ChainRules([mark for _, mark in self._parts], self._pattern.rules(vocabulary))

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """The ``question``, and of the texts that follow as many as are known; or ``speech``."""
        self.check(vocabulary)
        parts = [name for name, _ in self._parts[:-1]]
        prefixes = [parts[:count] for count in range(1, len(parts) + 1)]
        names = check_fields(self.name, content, *prefixes, ("speech",))
        if "speech" in names:
            plan, counted = self._plan_speech(content, end=False)
        else:
            plan, counted = self._plan_parts(content)
        ids = gather(vocabulary, plan, [field for _, field in counted])
        begun = len(parts) if "speech" in names else len(names)
        state = ChainRules.begin(begun, self._pattern.rules(vocabulary), len(parts))
        return Prompt(ids=ids, given=ids[:, :0], state=state)

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        if int(prompt.ids[0, 0]) == vocabulary.speech:
            return {"speech": self._pattern.read(vocabulary, ids)}
        begun = int((prompt.ids < len(CONTROLS)).sum()) - 1
        return self._read_parts(vocabulary, ids[0], begun)

    @property
    def _parts(self) -> tuple[tuple[str, str], ...]:
        """Fields in order, each with its mark."""
        texts = [("question_text", self.question_text), ("answer_text", self.answer_text)]
        return (
            ("question", "user"),
            *((name, "text") for name, there in texts if there),
            ("answer", "assistant"),
        )

    @property
    def _pattern(self) -> Stages:
        return Stages((tuple(range(self.num_codebooks)),))

    def _plan_speech(self, content: Content, *, end: bool) -> tuple[Plan, Counted]:
        speech = units_field(content, "speech", self.num_codebooks)
        weights = (1.0,) * self.num_codebooks
        placed = self._pattern.place(speech.shape[1], end=end, weights=weights)
        return join([mark("speech", [0.0]), placed]), (("speech", speech),)

    def _plan_parts(self, content: Content) -> tuple[Plan, Counted]:
        """The parts that ``content`` has, up to the mark of the next, or the end."""
        parts: list[Plan] = []
        counted: list[tuple[str, Tensor]] = []
        taken, before = 0, 0.0
        for name, opening in self._parts:
            parts.append(mark(opening, [before]))
            if name not in content:
                break
            if name.endswith("text"):
                field, before = text_field(content, name), self.text_weight
                parts.append(run(TEXT, taken, taken + len(field), self.text_weight))
            else:
                field = units_field(content, name, self.num_codebooks)
                before = self.question_weight if name == "question" else 1.0
                weights = (before,) * self.num_codebooks
                ended = name == "answer"
                placed = self._pattern.place(field.shape[1], end=ended, weights=weights)
                parts.append(placed.after(taken))
            counted.append((name, field))
            taken += field.numel()
        return join(parts), tuple(counted)

    def _read_parts(self, vocabulary: Vocabulary, row: Tensor, begun: int) -> dict[str, Tensor]:
        marks = (row < len(CONTROLS)).nonzero().flatten()
        edges = torch.cat([torch.tensor([-1]), marks, torch.tensor([len(row)])]).tolist()
        content = {}
        for count, (name, _) in enumerate(self._parts[begun:]):
            part = row[:0]
            if count + 1 < len(edges):
                part = row[edges[count] + 1 : edges[count + 1]]
            if name.endswith("text"):
                content[name] = part - vocabulary.first_text
            else:
                content[name] = self._pattern.read(vocabulary, part[None])
        return content


class ChainRules:
    """Text until the mark of the next part, then units until the end.

    A state is ``(part, state within units)``.
    """

    def __init__(self, marks: Sequence[str], units: Rules) -> None:
        self._marks, self._units, self._last = marks, units, len(marks) - 1
        self.start: Hashable = self.begin(1, units, self._last)

    @staticmethod
    def begin(part: int, units: Rules, last: int) -> Hashable:
        return (part, units.start if part == last else None)

    def at(self, state: Any) -> tuple[str, ...]:
        part, inner = state
        return self._units.at(inner) if part == self._last else (f"tokens|{self._marks[part + 1]}",)

    def all(self) -> Iterable[tuple[str, ...]]:
        texts = [self.at((part, None)) for part in range(1, self._last)]
        return [*texts, *self._units.all()]

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        part, inner = state
        if part == self._last:
            following = self._units.advance(inner, column)
            return None if following is None else (part, following)
        if column[0] < len(CONTROLS):
            return self.begin(part + 1, self._units, self._last)
        return (part, inner)
