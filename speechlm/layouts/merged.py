"""Units and what goes with them in one row, by time, each said only when it changes.

``[speech] s p u  p u  u  s u … [end]``: before a unit come the side streams that are another than
at the unit before, the last stream first (style, pitch, then the unit). Before the first unit of
a recording all of them come.

Source: Nguyen et al. 2024 (Spirit-LM: deduplicated units with pitch and style among them),
arXiv:2402.05755.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechlm.layouts.grid import Content, Field, Prompt
from speechlm.layouts.plan import (
    CONTROL,
    END,
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
from speechlm.layouts.units_layout import check_weights
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.units import collapse_repeats


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged(PlannedLayout):
    """Fields ``speech``, or ``question`` and ``answer``: units int64 [K, F], F >= 0.

    Frames are merged first, so how long each lasted cannot be told from the content: see
    :meth:`merged`.

    Raises:
        ConfigError: Weights that are not one a stream.
    """

    num_codebooks: int
    """K; stream 0 is the unit, the others go with it."""
    within: bool = False
    """Whether a side stream's change within a unit is said, and the unit once more."""
    stream_weights: tuple[float, ...] = ()
    """How much each stream counts in the loss; empty: 1 each."""
    question_weight: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self.stream_weights, self.num_codebooks)

    @property
    def collapse(self) -> bool:
        """Repeats of a frame are merged, as ``flat`` can."""
        return True

    @property
    def length_varies(self) -> bool:
        """Contents of the same shape may be laid out in more columns or fewer."""
        return self.num_codebooks > 1

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(
            Field(name=name, kind="units", num_streams=self.num_codebooks, optional=True)
            for name in ("speech", "question", "answer")
        )

    @property
    def row_kinds(self) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(self.num_codebooks)),)

    def streams_for(self, codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
        return codebook_sizes

    def merged(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What is laid out of units int64 [K, F]: a column a unit said.

        Returns:
            codes: int64 [K, U]. With ``within`` the frames with their repeats merged, else the
                first frame of each run of one unit.
            durations: How many frames each stands for, int64 [U].
        """
        if self.within:
            return collapse_repeats(codes)
        durations = collapse_repeats(codes[:1])[1]
        return codes[:, durations.cumsum(0) - durations], durations

    def plan(self, content: Content) -> tuple[Plan, Counted]:
        names = check_fields(self.name, content, ("speech",), ("question", "answer"))
        if "speech" in names:
            speech = self._units(content, "speech")
            return self._speak(speech, end=True), (("speech", speech),)
        question, answer = self._units(content, "question"), self._units(content, "answer")
        parts = [self._ask(question), self._place(answer, end=True).after(question.numel())]
        return join(parts), (("question", question), ("answer", answer))

    def parse(self, vocabulary: Vocabulary, ids: Tensor) -> dict[str, Tensor]:
        if ids.shape[1] and int(ids[0, 0]) == vocabulary.user:
            turn = column_of(ids, vocabulary.assistant)
            return {
                "question": self._read(vocabulary, ids[0, 1:turn]),
                "answer": self._read(vocabulary, ids[0, turn + 1 :]),
            }
        return {"speech": self._read(vocabulary, ids[0, 1:])}

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return MergedRules(vocabulary)

    def prompt(self, vocabulary: Vocabulary, content: Content) -> Prompt:
        """A ``question`` to be answered, or ``speech`` to be continued."""
        self.check(vocabulary)
        names = check_fields(self.name, content, ("question",), ("speech",))
        name = "question" if "question" in names else "speech"
        units = self._units(content, name)
        plan = self._ask(units) if name == "question" else self._speak(units, end=False)
        ids = gather(vocabulary, plan, [units])
        goes_on = name == "speech" and units.shape[1] > 0
        state = MergedRules.begun(self.num_codebooks) if goes_on else None
        return Prompt(ids=ids, given=ids[:, :0], state=state)

    def read(self, vocabulary: Vocabulary, prompt: Prompt, ids: Tensor) -> dict[str, Tensor]:
        if int(prompt.ids[0, 0]) == vocabulary.user:
            return {"answer": self._read(vocabulary, ids[0])}
        # What does not change any more was said in the prompt.
        known = self._read(vocabulary, prompt.ids[0, 1:]).shape[1]
        whole = self._read(vocabulary, torch.cat([prompt.ids[0, 1:], ids[0]]))
        return {"speech": whole[:, known:]}

    def _speak(self, units: Tensor, *, end: bool) -> Plan:
        return join([mark("speech", [0.0]), self._place(units, end=end)])

    def _ask(self, question: Tensor) -> Plan:
        asked = self._place(question, end=False)
        asked.weights.mul_(self.question_weight)
        marks = mark("user", [0.0]), mark("assistant", [self.question_weight])
        return join([marks[0], asked, marks[1]])

    def _place(self, codes: Tensor, *, end: bool) -> Plan:
        """The plan of codes [K, U]; what is not said anew has no cell."""
        num_streams, num_units = codes.shape
        said = torch.ones_like(codes, dtype=torch.bool)
        said[1:, 1:] = codes[1:, 1:] != codes[1:, :-1]
        # By time, and of one time the last stream first.
        times, order = said.flip(0).T.nonzero().unbind(1)
        streams = num_streams - 1 - order
        weights = torch.tensor(self.stream_weights or (1.0,) * num_streams)
        plan = Plan(
            (streams * num_units + times)[None], streams[None], weights[streams][None].float()
        )
        if not end:
            return plan
        last = Plan(torch.tensor([[END]]), torch.tensor([[CONTROL]]), torch.ones(1, 1))
        return join([plan, last])

    def _read(self, vocabulary: Vocabulary, row: Tensor) -> Tensor:
        """The units said in a row of ids [n], up to its end, as int64 [K, U]."""
        row = row[: column_of(row[None], vocabulary.end)]
        starts = [vocabulary.unit_range(stream).start for stream in range(self.num_codebooks)]
        streams = torch.searchsorted(torch.tensor(starts), row, right=True) - 1
        at = torch.arange(len(row))
        said = (streams == 0).nonzero().flatten()
        codes = []
        for stream, start in enumerate(starts):
            # The last time that the stream came, at each unit.
            latest = torch.where(streams == stream, at, -1).cummax(0).values[said]
            codes.append(torch.where(latest >= 0, row[latest] - start, 0))
        return torch.stack(codes)

    def _units(self, content: Content, name: str) -> Tensor:
        return self.merged(units_field(content, name, self.num_codebooks))[0]


class MergedRules:
    """Side streams from the last to the first, any of them left out, then the unit.

    The first unit has all of them. A state is ``(begun, stream)``: whether a unit has come, and
    the stream that may come at the most.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._last = len(vocabulary.stream_sizes) - 1
        self._ranges = [vocabulary.unit_range(stream) for stream in range(self._last + 1)]
        self.start: Hashable = (False, self._last)

    @staticmethod
    def begun(num_streams: int) -> Hashable:
        """The state after a unit."""
        return (True, num_streams - 1)

    def at(self, state: Any) -> tuple[str, ...]:
        begun, stream = state
        names = [f"unit{each}" for each in range(stream, -1 if begun else stream - 1, -1)]
        return ("|".join([*names, *(["end"] if stream == self._last else [])]),)

    def all(self) -> Iterable[tuple[str, ...]]:
        return [
            self.at((begun, stream)) for begun in (False, True) for stream in range(self._last + 1)
        ]

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        if column[0] == END:
            return None
        came = next(at for at, ids in enumerate(self._ranges) if column[0] in ids)
        return (True, self._last) if came == 0 else (state[0], came - 1)
