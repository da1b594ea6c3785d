"""A text row that is written first, above the audio rows (Mini-Omni).

Source: Xie and Wu 2024, arXiv:2408.16725.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlm.layouts.grid import Content, Field, Prompt
from speechlm.layouts.patterns import Delays
from speechlm.layouts.plan import (
    CONTROL,
    END,
    TEXT,
    Counted,
    Plan,
    PlannedLayout,
    Rules,
    blank,
    check_fields,
    column_of,
    gather,
    join,
    mark,
    stack,
    text_field,
    units_field,
    without_text,
)
from speechlm.layouts.units_layout import check_weights, split_known
from speechlm.layouts.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFirst(PlannedLayout):
    """Fields ``text`` [T] and ``speech`` [K, F], or ``question``, ``text`` and ``answer``.

    Row 0 holds the text, its end, then fill; the K rows below hold the units, each with its
    delay. The text may be longer than the audio, or shorter, or not be there.
    """

    delays: tuple[int, ...]
    """Of the audio rows; the text has none."""
    text_weight: float = 1.0
    """How much text counts in the loss."""
    stream_weights: tuple[float, ...] = ()
    """How much each codebook counts; empty: 1 each."""
    question_weight: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self.stream_weights, len(self.delays))

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field(name="text", kind="text"),
            *(
                Field(name=name, kind="units", num_streams=len(self.delays), optional=True)
                for name in ("speech", "question", "answer")
            ),
        )

    @property
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        return ((TEXT,), *((stream,) for stream in range(len(self.delays))))

    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        return codebook_sizes

    def plan(self, content: Content) -> tuple[Plan, Counted]:
        names = check_fields(
            self.name,
            content,
            ("text", "speech"),
            ("question", "text", "answer"),
            ("speech",),
            ("question", "answer"),
        )
        content = without_text(content)
        said = "answer" if "answer" in names else "speech"
        text, units = text_field(content, "text"), self._units(content, said)
        audio = self._place(units, end=True, weight=1.0).after(len(text))
        width = max(len(text) + 1, audio.cells.shape[1])
        body = stack([_written(text, self.text_weight), audio], width)
        if said == "speech":
            return join([self._mark("speech", 0.0), body]), (("text", text), (said, units))
        question = self._units(content, "question")
        counted = (("question", question), ("text", text), (said, units))
        return join([self._ask(question), body.after(question.numel())]), counted

    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        if ids.shape[1] and int(ids[0, 0]) == vocabulary.user:
            turn = column_of(ids, vocabulary.assistant)
            question = self._read_units(vocabulary, ids[:, 1:turn])
            return {"question": question, **self._read(vocabulary, ids[:, turn + 1 :], "answer")}
        return self._read(vocabulary, ids[:, 1:], "speech")

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return TextFirstRules(Delays(self.delays).rules(vocabulary), len(self.delays))

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """A ``question``, the ``text`` to be spoken, or both; or ``speech`` to be gone on from.

        Speech that goes on has all of its text (or none) from the start.
        """
        self.check(vocabulary)
        names = check_fields(
            self.name,
            content,
            ("question",),
            ("text",),
            ("question", "text"),
            ("text", "speech"),
            ("speech",),
        )
        if "speech" in names:
            return self._prompt_speech(vocabulary, without_text(content))
        if "question" in names:
            question = self._units(content, "question")
            ids = gather(vocabulary, self._ask(question), [question])
        else:
            ids = gather(vocabulary, self._mark("speech", 0.0), [])
        given = ids[:, :0]
        if "text" in names:
            text = text_field(content, "text")
            row = gather(vocabulary, _written(text, 0.0), [text])
            given = F.pad(row, (0, 0, 0, len(self.delays)), value=-1)
        return Prompt(ids=ids, given=given)

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        if prompt.state is not None:  # goes on where the first of the audio rows does
            waits = [delay - min(self.delays) for delay in self.delays]
            return {"speech": Delays(tuple(waits)).read(vocabulary, ids[1:])}
        said = "answer" if int(prompt.ids[0, 0]) == vocabulary.user else "speech"
        content = self._read(vocabulary, ids, said)
        return {said: content[said]} if prompt.given.numel() else content

    def _prompt_speech(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        text, speech = text_field(content, "text"), self._units(content, "speech")
        wide = F.pad(speech, (0, Delays(self.delays).lookahead))
        audio = self._place(wide, end=False, weight=0.0)
        num_known = torch.full((len(self.delays),), speech.shape[1])
        rows = gather(vocabulary, audio, [wide])
        known, given = split_known(rows, audio, wide.shape[1], num_known)
        written = gather(vocabulary, _written(text, 0.0), [text])
        left = written.shape[1] - known.shape[1]
        width = max(left, given.shape[1], 0)
        known_text = F.pad(written, (0, max(-left, 0)))[:, : known.shape[1]]
        given_text = F.pad(written[:, known.shape[1] :], (0, width - max(left, 0)), value=-1)
        given = F.pad(given, (0, width - given.shape[1]), value=-1)
        start = gather(vocabulary, self._mark("speech", 0.0), [])
        return Prompt(
            ids=torch.cat([start, torch.cat([known_text, known])], dim=1),
            given=torch.cat([given_text, given]),
            state=(left > 0, (min(self.delays), -1)),
        )

    def _ask(self, question: Tensor) -> Plan:
        audio = self._place(question, end=False, weight=self.question_weight)
        body = stack([blank(1, 0), audio], audio.cells.shape[1])
        marks = self._mark("user", 0.0), self._mark("assistant", self.question_weight)
        return join([marks[0], body, marks[1]])

    def _place(self, codes: Tensor, *, end: bool, weight: float) -> Plan:
        weights = [weight * each for each in self.stream_weights or (1.0,) * len(self.delays)]
        return Delays(self.delays).place(codes.shape[1], end=end, weights=weights)

    def _mark(self, name: str, weight: float) -> Plan:
        return mark(name, [weight] * self.num_rows)

    def _units(self, content: Content, name: str) -> Tensor:
        return units_field(content, name, len(self.delays))

    def _read(self, vocabulary: Vocabulary, ids: Tensor, said: str) -> dict[str, Tensor]:
        is_text = (ids[0] >= vocabulary.first_text) & (ids[0] < vocabulary.first_unit)
        length = int(is_text.long().cumprod(0).sum())
        text = ids[0, :length] - vocabulary.first_text
        return {"text": text, said: self._read_units(vocabulary, ids)}

    def _read_units(self, vocabulary: Vocabulary, ids: Tensor) -> Tensor:
        return Delays(self.delays).read(vocabulary, ids[1:])


def _written(text: Tensor, weight: float) -> Plan:
    """A row of text and its end."""
    cells = torch.cat([torch.arange(len(text)), torch.tensor([END])])[None]
    kinds = torch.full_like(cells, TEXT)
    kinds[0, -1] = CONTROL
    return Plan(cells, kinds, torch.full(cells.shape, weight))


class TextFirstRules:
    """Text until its end, audio until its end, each filled until the other is there too.

    A state is whether the text goes on, and the audio's state, None once it is over.
    """

    def __init__(self, audio: Rules, num_audio_rows: int) -> None:
        self._audio = audio
        self._silent = ("pad",) * num_audio_rows
        self.start: Hashable = (True, audio.start)

    def at(self, state: Any) -> tuple[str, ...]:
        writes, audio = state
        names = self._silent if audio is None else self._audio.at(audio)
        return ("tokens|end" if writes else "pad", *names)

    def all(self) -> Iterable[tuple[str, ...]]:
        for names in (*self._audio.all(), self._silent):
            yield ("tokens|end", *names)
            yield ("pad", *names)

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        writes, audio = state
        writes = writes and column[0] != END
        audio = None if audio is None else self._audio.advance(audio, column[1:])
        return (writes, audio) if writes or audio is not None else None
