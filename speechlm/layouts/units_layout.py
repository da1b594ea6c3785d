"""Units alone: a recording, or a question and its answer, in any pattern.

==============================================  ============================
``[speech] u1 … un [end]``                      a recording on its own
``[user] q1 … qn [assistant] a1 … am [end]``    a question and its answer
==============================================  ============================

A mark is a column with the mark in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlm.errors import ConfigError, InputError
from speechlm.layouts.grid import Content, Field, Prompt
from speechlm.layouts.patterns import Groups, Pattern, Stages
from speechlm.layouts.plan import (
    Counted,
    Plan,
    PlannedLayout,
    Rules,
    check_fields,
    column_of,
    gather,
    join,
    mark,
    units_field,
)
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.units import collapse_repeats


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitsLayout(PlannedLayout):
    """Fields ``speech``, or ``question`` and ``answer``: units int64 [K, F], F >= 0.

    Raises:
        ConfigError: Weights that are not one a stream, or repeats of frames of several streams.
    """

    pattern: Pattern
    question_weight: float = 0.0
    """How much the question counts in the loss, its marks included; the answer counts 1."""
    stream_weights: tuple[float, ...] = ()
    """How much each stream counts; empty: 1 each."""
    collapse: bool = False
    """Merge repeats of a frame, which then cannot be told from the content."""
    side_streams: tuple[int, ...] = ()
    """Sizes of streams that are not the tokenizer's, after its own."""

    def __post_init__(self) -> None:
        check_weights(self.stream_weights, self.num_streams)

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(
            Field(name=name, kind="units", num_streams=self.pattern.num_codebooks, optional=True)
            for name in ("speech", "question", "answer")
        )

    @property
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        return self.pattern.row_streams

    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(self.pattern, Groups):
            return codebook_sizes * self.pattern.size
        return codebook_sizes + self.side_streams

    def plan(self, content: Content) -> tuple[Plan, Counted]:
        names = check_fields(self.name, content, ("speech",), ("question", "answer"))
        if "speech" in names:
            speech = self._units(content, "speech")
            parts = [self._mark("speech", 0.0), self._place(speech, end=True)]
            return join(parts), (("speech", speech),)
        question, answer = self._units(content, "question"), self._units(content, "answer")
        asked = self._ask(question)
        answered = self._place(answer, end=True).after(question.numel())
        return join([asked, answered]), (("question", question), ("answer", answer))

    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        if ids.shape[1] and int(ids[0, 0]) == vocabulary.user:
            turn = column_of(ids, vocabulary.assistant)
            return {
                "question": self.pattern.read(vocabulary, ids[:, 1:turn]),
                "answer": self.pattern.read(vocabulary, ids[:, turn + 1 :]),
            }
        return {"speech": self.pattern.read(vocabulary, ids[:, 1:])}

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return self.pattern.rules(vocabulary)

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """A ``question`` to be answered, or ``speech`` [K, F] to be continued.

        Stages go on only from whole stages: give the codebooks of the first ones, [K', F], and
        the others are generated (AudioLM: acoustic units from semantic ones).
        """
        self.check(vocabulary)
        names = check_fields(self.name, content, ("question",), ("speech",))
        if "question" in names:
            question = self._units(content, "question")
            ids = gather(vocabulary, self._ask(question), [question])
            return Prompt(ids=ids, given=ids[:, :0])
        if isinstance(self.pattern, Stages) and len(self.pattern.stages) > 1:
            return self._prompt_stages(vocabulary, self.pattern, content["speech"])
        speech = self._units(content, "speech")
        start = gather(vocabulary, self._mark("speech", 0.0), [])
        wide = F.pad(speech, (0, self.pattern.lookahead))
        plan = self._place(wide, end=False)
        num_known = torch.full((self.pattern.num_codebooks,), speech.shape[1])
        known, given = split_known(gather(vocabulary, plan, [wide]), plan, wide.shape[1], num_known)
        return Prompt(ids=torch.cat([start, known], dim=1), given=given)

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        if int(prompt.ids[0, 0]) == vocabulary.user:
            return {"answer": self.pattern.read(vocabulary, ids)}
        if prompt.state is not None:  # whole stages were known: these frames are now complete
            columns = torch.cat([prompt.ids[:, 1:], ids], dim=1)
            return {"speech": self.pattern.read(vocabulary, columns)}
        speech = self.pattern.read(vocabulary, ids)
        if isinstance(self.pattern, Groups):  # the group that the prompt began
            speech = speech[:, int((prompt.given >= 0).sum()) :]
        return {"speech": speech}

    def _prompt_stages(self, vocabulary: Vocabulary, pattern: Stages, speech: Tensor) -> Prompt:
        sizes = [len(stage) for stage in pattern.stages]
        wholes = [sum(sizes[:count]) for count in range(1, len(sizes))]
        if speech.ndim != 2 or speech.shape[0] not in wholes or not speech.shape[1]:
            raise InputError(
                f"the layout {self.name!r} goes on from whole stages only: expected speech of "
                f"{' or '.join(map(str, wholes))} codebooks and F >= 1, got {list(speech.shape)}"
            )
        done, num_frames = wholes.index(speech.shape[0]) + 1, speech.shape[1]
        missing = self.pattern.num_codebooks - speech.shape[0]
        plan = self._place(torch.cat([speech, speech.new_zeros(missing, num_frames)]), end=False)
        order = [stream for stage in pattern.stages for stream in stage]
        rows = {stream: row for row, stream in enumerate(sorted(order[: speech.shape[0]]))}
        codes = speech.new_zeros(len(order), num_frames)
        for stream, row in rows.items():
            codes[stream] = speech[row]
        ids = gather(vocabulary, join([self._mark("speech", 0.0), plan]), [codes])
        ids = ids[:, : 1 + speech.numel()]
        return Prompt(ids=ids, given=ids[:, :0], state=(done, 0, 0, num_frames))

    def _ask(self, question: Tensor) -> Plan:
        asked = self._place(question, end=False)
        asked.weights.mul_(self.question_weight)
        marks = (self._mark("user", 0.0), self._mark("assistant", self.question_weight))
        return join([marks[0], asked, marks[1]])

    def _place(self, codes: Tensor, *, end: bool) -> Plan:
        weights = self.stream_weights or (1.0,) * self.num_streams
        return self.pattern.place(codes.shape[1], end=end, weights=weights)

    def _mark(self, name: str, weight: float) -> Plan:
        return mark(name, row_weights(self.row_kinds, self.stream_weights, weight))

    def _units(self, content: Content, name: str) -> Tensor:
        codes = units_field(content, name, self.pattern.num_codebooks)
        return collapse_repeats(codes)[0] if self.collapse else codes


def check_weights(stream_weights: Sequence[float], num_streams: int) -> None:
    """Refuse weights that are not one a stream, or negative, with a ConfigError."""
    if stream_weights and (len(stream_weights) != num_streams or min(stream_weights) < 0):
        raise ConfigError(
            f"expected stream_weights of {num_streams} numbers of 0 or more, "
            f"got {list(stream_weights)}"
        )


def row_weights(
    row_kinds: Sequence[Sequence[int]], stream_weights: Sequence[float], weight: float
) -> list[float]:
    """What a mark weighs in each row: as the row's stream, where every row has its own."""
    if len(row_kinds) == 1 or not stream_weights:
        return [weight] * len(row_kinds)
    return [weight * stream_weights[streams[0]] for streams in row_kinds]


def split_known(
    ids: Tensor, placed: Plan, num_frames: int, num_known: Tensor
) -> tuple[Tensor, Tensor]:
    """Part columns of which only the first frames of each stream are known.

    Args:
        ids: int64 [R, S]; what is not known is ignored.
        placed: The plan of their frames.
        num_frames: F of that plan, larger than what is known by as many as share its columns.
        num_known: Known frames of each stream that the plan counts, int64 [K].

    Returns:
        known: The columns known whole, int64 [R, n].
        given: Those after them, as far as anything in them is known, int64 [R, m], -1 where free.
    """
    stream, frame = placed.cells // num_frames, placed.cells % num_frames
    known = placed.is_content & (frame < num_known[stream.clamp(max=len(num_known) - 1)])
    # Fill before a row's first frame is known too; fill after its last one is not there yet.
    begun = placed.is_content.long().cumsum(dim=1) > 0
    settled = known | ~begun
    whole = int(settled.all(dim=0).long().cumprod(0).sum())
    reach = int(known.any(dim=0).nonzero().max()) + 1 if bool(known.any()) else 0
    masked = ids.where(settled, torch.tensor(-1))
    return masked[:, :whole], masked[:, whole : max(reach, whole)]
