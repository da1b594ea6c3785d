"""Text that keeps time with the audio, and a second speaker: rows in step with the frames.

Sources: Défossez et al. 2024 (Moshi), arXiv:2410.00037; Nguyen et al. 2022 (dGSLM),
arXiv:2203.16502; Wang et al. 2025 (NTPP), arXiv:2506.00975.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlm.errors import InputError
from speechlm.layouts.grid import Content, Field, Prompt
from speechlm.layouts.patterns import DelayRules, Delays
from speechlm.layouts.plan import (
    PAD,
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
from speechlm.layouts.vocabulary import CONTROLS, Vocabulary

WORD = CONTROLS.index("word")
SILENT_FRAMES = 10
"""So many frames of one and the same unit are silence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Monologue(PlannedLayout):
    """Rows in step: text that keeps time (optional), one's own K streams, another's K (optional).

    With another speaker: fields ``self`` and ``other``, units [K, F] of equal length. Without:
    ``speech``, or ``question`` and ``answer``. With text besides: ``text`` [T] and ``words``
    [W, 2], the frame at which each word begins and how many tokens it has; none if not given.

    In the text row a word's tokens follow each other from the frame where it begins; ``word``
    stands in the frame before (Moshi's EPAD), ``pad`` in all others.
    """

    num_codebooks: int
    text: bool
    other: bool
    delays: tuple[int, ...]
    """Of every row: the text's, one's own, the other's."""
    text_weight: float = 1.0
    """How much text tokens, and ``word``, count in the loss."""
    text_pad_weight: float = 0.5
    """How much ``pad`` in the text counts, which is most of it."""
    stream_weights: tuple[float, ...] = ()
    """How much each codebook counts; empty: 1 each."""
    other_weight: float = 1.0
    """How much the other speaker counts, beside one's own 1."""
    onset_weight: float = 1.0
    """How much a frame counts in which one's own first codebook changes after silence, beside
    another speaker: where one begins to speak. Such frames are few, and to begin is never as
    probable as to wait a frame more; above 1, the model begins sooner."""
    question_weight: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self.stream_weights, self.num_codebooks)

    @property
    def fields(self) -> tuple[Field, ...]:
        names = ("self", "other") if self.other else ("speech", "question", "answer")
        units = (
            Field(name=name, kind="units", num_streams=self.num_codebooks, optional=not self.other)
            for name in names
        )
        texts = (Field(name="text", kind="text"), Field(name="words", kind="words"))
        return (*(texts if self.text else ()), *units)

    @property
    def num_live_rows(self) -> int:
        """The other speaker's rows, the last ones, which a live model is told."""
        return self.num_codebooks * self.other

    @property
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        streams = range(self.num_codebooks * (1 + self.other))
        return (*([(TEXT,)] if self.text else []), *((stream,) for stream in streams))

    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        # The other speaker's units are other ids: a column is a sum, which would mix them up.
        return codebook_sizes * (1 + self.other)

    def plan(self, content: Content) -> tuple[Plan, Counted]:
        texts = ("text", "words") if self.text else ()
        if self.other:
            check_fields(self.name, content, (*texts, "self", "other"), ("self", "other"))
            plan, counted = self._place(content, ("self", "other"), end=True)
        else:
            names = check_fields(
                self.name,
                content,
                (*texts, "speech"),
                (*texts, "question", "answer"),
                ("speech",),
                ("question", "answer"),
            )
            if "question" in names:
                question = self._units(content, "question")
                plan, counted = self._place(content, ("answer",), end=True)
                counted = (("question", question), *counted)
                return join([self._ask(question), plan.after(question.numel())]), counted
            plan, counted = self._place(content, ("speech",), end=True)
        return join([self._mark("speech", 0.0), plan]), counted

    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        if self.other:
            return self._read(vocabulary, ids[:, 1:], ("self", "other"))
        if ids.shape[1] and int(ids[0, 0]) == vocabulary.user:
            turn = column_of(ids, vocabulary.assistant)
            asked = self._read(vocabulary, ids[:, 1:turn], ("question",))
            answer = self._read(vocabulary, ids[:, turn + 1 :], ("answer",))
            return {"question": asked["question"], **answer}
        return self._read(vocabulary, ids[:, 1:], ("speech",))

    def rules(self, vocabulary: Vocabulary) -> Rules:
        streams = range(self.num_codebooks * (1 + self.other))
        names = [*(["tokens"] if self.text else []), *(f"unit{stream}" for stream in streams)]
        rules = DelayRules(self.delays, names)
        return MonologueRules(rules) if self.text else rules

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """A ``question``; or what has been said (and its text), to be gone on from.

        ``other`` may be longer than ``self``: what the other says while the answer is generated.
        """
        self.check(vocabulary)
        texts = ("text", "words") if self.text else ()
        said = ("self", "other") if self.other else ("speech",)
        questions = () if self.other else (("question",),)
        if "question" in check_fields(self.name, content, (*texts, *said), said, *questions):
            question = self._units(content, "question")
            ids = gather(vocabulary, self._ask(question), [question])
            return Prompt(ids=ids, given=ids[:, :0])
        units = [self._units(content, name) for name in said]
        own, longest = units[0].shape[1], max(codes.shape[1] for codes in units)
        if longest > units[-1].shape[1]:
            raise InputError(
                f"expected the other speaker for as long as oneself, {own} frames or more, "
                f"got {units[-1].shape[1]}"
            )
        content = without_text(content)
        slots = self._write(content, own)[0] if self.text else None
        num_frames = longest + max(self.delays) + 1
        wide = {
            **content,
            **{
                name: F.pad(codes, (0, num_frames - codes.shape[1]))
                for name, codes in zip(said, units, strict=True)
            },
        }
        plan, counted = self._place(wide, said, end=False)
        rows = gather(vocabulary, plan, [field for _, field in counted])
        lengths = [own] * (self.num_rows - self.num_codebooks * self.other)
        lengths += [units[-1].shape[1]] * (self.num_codebooks * self.other)
        known, given = split_known(
            rows,
            Delays(self.delays).place(num_frames, end=False, weights=[0.0] * self.num_rows),
            num_frames,
            torch.tensor(lengths),
        )
        start = gather(vocabulary, self._mark("speech", 0.0), [])
        last = "free" if slots is None or not own else _last_slot(slots)
        # Where oneself is later than the other, columns beyond one's own last frame are known.
        begun = (min(known.shape[1] - own, max(self.delays)), -1)
        state = (begun, last) if self.text else begun
        return Prompt(ids=torch.cat([start, known], dim=1), given=given, state=state)

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        if self.other:
            return self._read(vocabulary, ids, ("self", "other"))
        said = "answer" if int(prompt.ids[0, 0]) == vocabulary.user else "speech"
        return self._read(vocabulary, ids, (said,))

    def _place(self, content: Content, said: tuple[str, ...], *, end: bool) -> tuple[Plan, Counted]:
        """The rows of ``said``, and of the text if there is any, without the start."""
        content = without_text(content)
        units = [self._units(content, name) for name in said]
        num_frames = units[0].shape[1]
        if units[-1].shape[1] != num_frames:
            raise InputError(
                f"expected both speakers for as many frames, got {num_frames} and "
                f"{units[-1].shape[1]}"
            )
        own = self.stream_weights or (1.0,) * self.num_codebooks
        weights = [self.text_weight] * self.text
        weights += [*own, *(self.other_weight * weight for weight in own)]
        plan = Delays(self.delays).place(num_frames, end=end, weights=weights)
        if self.other and self.onset_weight != 1:
            onsets = self.delays[self.text] + _onsets(units[0][0])
            plan.weights[int(self.text), onsets] *= self.onset_weight
        counted = tuple(zip(said, units, strict=True))
        if not self.text:
            return plan, counted
        slots, tokens = self._write(content, num_frames)
        units_plan = Plan(plan.cells[1:], plan.kinds[1:], plan.weights[1:])
        # Rows below the text: their streams are one less, their elements follow the tokens.
        units_plan = units_plan.after(len(tokens) - num_frames)
        units_plan = Plan(
            units_plan.cells, units_plan.kinds - units_plan.is_content.long(), units_plan.weights
        )
        at = slice(self.delays[0], self.delays[0] + num_frames)
        for whole, part in ((plan.cells, slots.cells), (plan.kinds, slots.kinds)):
            whole[0, at] = part[0]
        plan.weights[0, at] = slots.weights[0]
        text_row = Plan(plan.cells[:1], plan.kinds[:1], plan.weights[:1])
        return stack([text_row, units_plan], plan.cells.shape[1]), (("text", tokens), *counted)

    def _write(self, content: Content, num_frames: int) -> tuple[Plan, Tensor]:
        """The text row, one cell a frame, and its tokens.

        Raises:
            InputError: The words do not fit their frames.
        """
        tokens, words = text_field(content, "text"), content["words"]
        if words.ndim != 2 or words.shape[1] != 2 or int(words[:, 1].sum()) != len(tokens):
            raise InputError(
                f"expected words int64 [W, 2] of {len(tokens)} tokens in all, got "
                f"{list(words.shape)}"
            )
        row = blank(1, num_frames)
        row.weights.fill_(self.text_pad_weight)
        taken, free = 0, 0
        for start, length in words.tolist():
            # A word that begins right after another's tokens could not be told from them.
            if length < 1 or start < free + (free > 0) or start + length > num_frames:
                raise InputError(
                    f"a word of {length} tokens cannot begin at frame {start}: expected at least "
                    f"one token, a free frame before it (free from {free} on) and an end within "
                    f"{num_frames} frames; fit_words moves words to where they fit"
                )
            if start:
                row.cells[0, start - 1] = WORD
                row.weights[0, start - 1] = self.text_weight
            free = start + length
            row.cells[0, start:free] = torch.arange(taken, taken + length)
            row.kinds[0, start:free] = TEXT
            row.weights[0, start:free] = self.text_weight
            taken += length
        return row, tokens

    def _ask(self, question: Tensor) -> Plan:
        own = self.stream_weights or (1.0,) * self.num_codebooks
        weights = [weight * self.question_weight for weight in own]
        delays = Delays(self.delays[self.text :])
        audio = delays.place(question.shape[1], end=False, weights=weights)
        body = stack([blank(int(self.text), 0), audio], audio.cells.shape[1])
        marks = self._mark("user", 0.0), self._mark("assistant", self.question_weight)
        return join([marks[0], body, marks[1]])

    def _mark(self, name: str, weight: float) -> Plan:
        return mark(name, [weight] * self.num_rows)

    def _units(self, content: Content, name: str) -> Tensor:
        return units_field(content, name, self.num_codebooks)

    def _read(
        self, vocabulary: Vocabulary, ids: Tensor, said: tuple[str, ...]
    ) -> dict[str, Tensor]:
        asks = said == ("question",)
        delays = self.delays[self.text :] if asks else self.delays
        ids = ids[self.text :] if asks else ids
        num_frames = Delays(delays).frames(vocabulary, ids)
        rows = torch.stack(
            [ids[row, delay : delay + num_frames] for row, delay in enumerate(delays)]
        )
        content: dict[str, Tensor] = {}
        if self.text and not asks:
            content |= _read_text(vocabulary, rows[0])
            rows = rows[1:]
        firsts = [vocabulary.unit_range(stream).start for stream in range(len(rows))]
        codes = rows - torch.tensor(firsts)[:, None]
        for at, name in enumerate(said):
            content[name] = codes[at * self.num_codebooks : (at + 1) * self.num_codebooks]
        return content


def _onsets(units: Tensor) -> Tensor:
    """The frames of int64 [F] that end a run of :data:`SILENT_FRAMES` equal ones or more."""
    if len(units) <= SILENT_FRAMES:
        return torch.zeros(0, dtype=torch.int64)
    windows = units.unfold(0, SILENT_FRAMES + 1, 1)
    silent = (windows[:, :-1] == windows[:, :1]).all(dim=1)
    return (silent & (windows[:, -1] != windows[:, 0])).nonzero().flatten() + SILENT_FRAMES


def _read_text(vocabulary: Vocabulary, row: Tensor) -> dict[str, Tensor]:
    """The text and the words of a text row int64 [F]."""
    tokens: list[int] = []
    words: list[list[int]] = []
    before = vocabulary.word
    for frame, id_ in enumerate(row.tolist()):
        if id_ in vocabulary.text_range:
            tokens.append(id_ - vocabulary.first_text)
            if before in vocabulary.text_range:
                words[-1][1] += 1
            else:
                words.append([frame, 1])
        before = id_
    return {
        "text": torch.tensor(tokens, dtype=torch.int64),
        "words": torch.tensor(words, dtype=torch.int64).view(-1, 2),
    }


def _last_slot(row: Plan) -> str:
    if int(row.kinds[0, -1]) == TEXT:
        return "free"
    return "silent" if int(row.cells[0, -1]) == PAD else "begun"


class MonologueRules:
    """The rows' delays, and in the text: tokens only after ``word`` or tokens.

    A state is the delays' and what the text row held last: "free" (tokens, or nothing yet),
    "silent" (``pad``) or "begun" (``word``, which a token must follow).
    """

    def __init__(self, rows: DelayRules) -> None:
        self._rows = rows
        self.start: Hashable = (rows.start, "free")
        self._text = {"free": "tokens|pad|word", "silent": "pad|word", "begun": "tokens"}

    def at(self, state: Any) -> tuple[str, ...]:
        rows, text = state
        first, *others = self._rows.at(rows)
        if first.startswith("tokens"):
            may_end = first.endswith("end") and text != "begun"
            first = self._text[text] + ("|end" if may_end else "")
        return (first, *others)

    def all(self) -> Iterable[tuple[str, ...]]:
        for state in self._rows.states:
            for text in self._text:
                yield self.at((state, text))

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        rows, text = state
        following = self._rows.advance(rows, column)
        if following is None:
            return None
        if self._rows.at(rows)[0].startswith("tokens"):
            text = {PAD: "silent", WORD: "begun"}.get(column[0], "free")
        return (following, text)


def fit_words(words: Sequence[tuple[int, int]], num_frames: int) -> Tensor:
    """Move words as little as needed to where a text row can hold them.

    Args:
        words: The frame at which each begins, and its tokens, in order.
        num_frames: F.

    Returns:
        The field ``words`` of a text row, int64 [W, 2]: each begins where it did or later, at
        least one frame after the tokens of the last; earlier only where the end forces it.

    Raises:
        InputError: There are more tokens than fit into the frames.
    """
    starts: list[int] = []
    free = 0
    for start, length in words:
        starts.append(max(start, free + (free > 0)))
        free = starts[-1] + length
    limit = num_frames
    for at in range(len(starts) - 1, -1, -1):
        starts[at] = min(starts[at], limit - words[at][1])
        limit = starts[at] - 1
    if starts and starts[0] < 0:
        raise InputError(
            f"{sum(length for _, length in words)} tokens in {len(words)} words do not fit into "
            f"{num_frames} frames; give shorter words or a higher frame rate"
        )
    fitted = [[start, length] for start, (_, length) in zip(starts, words, strict=True)]
    return torch.tensor(fitted, dtype=torch.int64).view(-1, 2)
