"""How the K codebooks of F frames fill rows and columns.

==========================  =====================================================
:class:`Delays`             a row a stream, row k moved right by its delay
:class:`Stages`             one row, groups of streams one after another
:class:`Groups`             G units of one stream side by side in a column
==========================  =====================================================

Each places frames, reads them back, and knows what may come next. The end is one more frame that
holds ``end`` in every stream where rows are streams, one column otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from speechlm.errors import ConfigError
from speechlm.layouts.plan import END, PAD, Plan, Rules, blank
from speechlm.layouts.vocabulary import Vocabulary

MOST_DELAY = 4096
"""Columns; a delay is a few of them, and all are laid out."""


class Pattern(Protocol):
    """Where the cells of codes [K, F] go."""

    @property
    def row_streams(self) -> tuple[tuple[int, ...], ...]:
        """The streams in each row; the first of a row is the one whose weight its controls have."""
        ...

    @property
    def num_codebooks(self) -> int:
        """K of the codes."""
        ...

    @property
    def lookahead(self) -> int:
        """Frames after a known one whose cells may share a column with it."""
        ...

    def place(self, num_frames: int, *, end: bool, weights: Sequence[float]) -> Plan:
        """The plan of codes [K, F], element ``k * F + f`` being codebook k of frame f.

        Args:
            num_frames: F, >= 0.
            end: Whether the end follows.
            weights: Of each stream.
        """
        ...

    def read(self, vocabulary: Vocabulary, ids: Tensor) -> Tensor:
        """The complete frames in columns int64 [R, n], ended or cut off, as codes [K, F]."""
        ...

    def rules(self, vocabulary: Vocabulary) -> Rules:
        """What may come from the first frame on."""
        ...


@dataclass(frozen=True, slots=True)
class Delays:
    """A row a stream; frame f of stream k is in column ``f + delays[k]``.

    Sources:
        Copet et al. 2023 (MusicGen: 0, 1, …, K - 1), arXiv:2306.05284; Défossez et al. 2024
        (Moshi: 0, 1, 1, …), arXiv:2410.00037; Kharitonov et al. 2021 (pGSLM: prosody shifted),
        arXiv:2109.03264.
    """

    delays: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.delays or not 0 <= min(self.delays) <= max(self.delays) <= MOST_DELAY:
            raise ConfigError(
                f"expected a delay of 0 to {MOST_DELAY} columns a stream, got {list(self.delays)}"
            )

    @property
    def row_streams(self) -> tuple[tuple[int, ...], ...]:
        return tuple((stream,) for stream in range(len(self.delays)))

    @property
    def num_codebooks(self) -> int:
        return len(self.delays)

    @property
    def lookahead(self) -> int:
        return max(self.delays) + 1

    def place(self, num_frames: int, *, end: bool, weights: Sequence[float]) -> Plan:
        total = num_frames + end
        plan = blank(len(self.delays), total + max(self.delays) if total else 0)
        for row, delay in enumerate(self.delays):
            stop = delay + num_frames
            plan.cells[row, delay:stop] = torch.arange(num_frames) + row * num_frames
            plan.kinds[row, delay:stop] = row
            plan.weights[row, delay : stop + end] = weights[row]
            if end:
                plan.cells[row, stop] = END
        return plan

    def read(self, vocabulary: Vocabulary, ids: Tensor) -> Tensor:
        num_frames = self.frames(vocabulary, ids)
        rows = [
            ids[row, delay : delay + num_frames] - vocabulary.unit_range(row).start
            for row, delay in enumerate(self.delays)
        ]
        return torch.stack(rows)

    def frames(self, vocabulary: Vocabulary, ids: Tensor) -> int:
        """How many whole frames there are in columns [R, n]."""
        first = min(self.delays)
        leaders = torch.tensor([delay == first for delay in self.delays])
        ends = (ids[leaders, first:] == vocabulary.end).any(dim=0).nonzero().flatten()
        whole = max(ids.shape[1] - max(self.delays), 0)
        return min(int(ends[0]), whole) if len(ends) else whole

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return DelayRules(self.delays, [f"unit{row}" for row in range(len(self.delays))])


class DelayRules:
    """Rows fill until their delay is over; the least delayed ones may end, the others follow.

    A state is ``(n, -1)`` n columns after the start, or ``(e, j)`` in column ``e + j`` once
    frame e is the end; n and e stop counting where no row waits any more. Rows of the least
    delay are drawn side by side: if any of them ends, the frame is the end.
    """

    def __init__(self, delays: Sequence[int], content: Sequence[str]) -> None:
        self._delays, self._content = tuple(delays), tuple(content)
        self._first, self._last = min(delays), max(delays)
        self._leaders = [row for row, delay in enumerate(delays) if delay == self._first]
        self.start: Hashable = (0, -1)
        self.states = [(n, -1) for n in range(self._last + 1)]
        self.states += [
            (frame, since)
            for frame in range(self._last + 1)
            for since in range(self._first + 1, self._last + 1)
        ]
        self._names = {state: self._names_at(*state) for state in self.states}

    def at(self, state: Any) -> tuple[str, ...]:
        return self._names[state]

    def all(self) -> Iterable[tuple[str, ...]]:
        return self._names.values()

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        count, since = state
        if since >= 0:
            return None if since == self._last else (count, since + 1)
        if count >= self._first:
            for row in self._leaders:
                if column[row] == END:
                    if self._first == self._last:
                        return None
                    return (count - self._first, self._first + 1)
        return (min(count + 1, self._last), -1)

    def _names_at(self, count: int, since: int) -> tuple[str, ...]:
        names = []
        for delay, content in zip(self._delays, self._content, strict=True):
            frame = (count if since < 0 else count + since) - delay
            if frame < 0 or (since >= 0 and frame > count):
                names.append("pad")
            elif since >= 0:
                names.append("end" if frame == count else content)
            else:
                names.append(f"{content}|end" if delay == self._first else content)
        return tuple(names)


@dataclass(frozen=True, slots=True)
class Stages:
    """One row: for each stage, its streams frame by frame.

    One stage of one stream is flat (GSLM, TWIST); one stage of all streams is flattened.

    Sources:
        Lakhotia et al. 2021 (GSLM), arXiv:2102.01192; Borsos et al. 2022 (AudioLM: semantic,
        coarse, fine), arXiv:2209.03143.
    """

    stages: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        streams = [stream for stage in self.stages for stream in stage]
        if not streams or sorted(streams) != list(range(len(streams))) or () in self.stages:
            raise ConfigError(
                "expected stages that hold every codebook once, as [[0], [1, 2]], got "
                f"{[list(stage) for stage in self.stages]}"
            )

    @property
    def row_streams(self) -> tuple[tuple[int, ...], ...]:
        return (tuple(stream for stage in self.stages for stream in stage),)

    @property
    def num_codebooks(self) -> int:
        return len(self.row_streams[0])

    @property
    def lookahead(self) -> int:
        return 1

    def place(self, num_frames: int, *, end: bool, weights: Sequence[float]) -> Plan:
        plan = blank(1, self.num_codebooks * num_frames + end)
        frames = torch.arange(num_frames)
        start = 0
        for stage in self.stages:
            streams = torch.tensor(stage)
            stop = start + len(stage) * num_frames
            plan.cells[0, start:stop] = (frames[:, None] + streams * num_frames).flatten()
            plan.kinds[0, start:stop] = streams.repeat(num_frames)
            plan.weights[0, start:stop] = torch.tensor(weights)[streams].repeat(num_frames)
            start = stop
        if end:
            plan.cells[0, start] = END
            plan.weights[0, start] = 1.0
        return plan

    def read(self, vocabulary: Vocabulary, ids: Tensor) -> Tensor:
        held = ids[0, : int((ids[0] >= vocabulary.first_unit).long().cumprod(0).sum())]
        ranges = [vocabulary.unit_range(stream) for stream in self.stages[0]]
        in_first = sum(int(((held >= r.start) & (held < r.stop)).sum()) for r in ranges)
        planned = in_first // len(self.stages[0])
        cells = self.place(planned, end=False, weights=[0.0] * self.num_codebooks).cells[0]
        columns = cells.argsort().view(self.num_codebooks, planned)
        whole = int((columns < len(held)).all(dim=0).long().cumprod(0).sum())
        firsts = [vocabulary.unit_range(stream).start for stream in range(self.num_codebooks)]
        return held[columns[:, :whole]] - torch.tensor(firsts)[:, None]

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return StageRules(self.stages, vocabulary)


class StageRules:
    """The first stage says how many frames there are; the others have as many.

    A state is ``(stage, position in the frame, frames so far, frames in all)``; the last is -1
    in the first stage.
    """

    def __init__(self, stages: tuple[tuple[int, ...], ...], vocabulary: Vocabulary) -> None:
        self._stages = stages
        self._first_ids = vocabulary.unit_range(stages[0][0])
        self.start: Hashable = (0, 0, 0, -1)

    def at(self, state: Any) -> tuple[str, ...]:
        stage, position, frames, _ = state
        if stage == len(self._stages):
            return ("end",)
        unit = f"unit{self._stages[stage][position]}"
        if stage or position:
            return (unit,)
        follows = f"unit{self._stages[1][0]}" if frames and len(self._stages) > 1 else "end"
        return (f"{unit}|{follows}",)

    def all(self) -> Iterable[tuple[str, ...]]:
        for stage, streams in enumerate(self._stages):
            for position in range(len(streams)):
                yield self.at((stage, position, 0, 0))
        yield self.at((0, 0, 1, -1))
        yield ("end",)

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        stage, position, frames, total = state
        if column[0] == END:
            return None
        if (stage, position) == (0, 0) and column[0] not in self._first_ids:
            stage, frames, total = 1, 0, frames
        position += 1
        if position == len(self._stages[stage]):
            position, frames = 0, frames + 1
            if frames == total:
                stage, frames = stage + 1, 0
        return (stage, position, frames, total)


@dataclass(frozen=True, slots=True)
class Groups:
    """``size`` units of one stream in a column, a row each; the last column is filled up.

    Source:
        Chen et al. 2024 (SLAM-Omni: semantic group modelling), arXiv:2412.15649.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"expected groups of at least 1 unit, got {self.size}")

    @property
    def row_streams(self) -> tuple[tuple[int, ...], ...]:
        return tuple((row,) for row in range(self.size))

    @property
    def num_codebooks(self) -> int:
        return 1

    @property
    def lookahead(self) -> int:
        return self.size

    def place(self, num_frames: int, *, end: bool, weights: Sequence[float]) -> Plan:
        columns = -(-num_frames // self.size)
        plan = blank(self.size, columns + end)
        frames = torch.arange(num_frames)
        row, column = frames % self.size, frames // self.size
        plan.cells[row, column] = frames
        plan.kinds[row, column] = row
        plan.weights[row, column] = torch.tensor(weights)[row]
        if end:
            plan.cells[:, columns] = END
            plan.weights[:, columns] = torch.tensor(weights)
        return plan

    def read(self, vocabulary: Vocabulary, ids: Tensor) -> Tensor:
        firsts = [vocabulary.unit_range(row).start for row in range(self.size)]
        in_order = ids.T.flatten()
        whole = int((in_order >= vocabulary.first_unit).long().cumprod(0).sum())
        return (ids - torch.tensor(firsts)[:, None]).T.flatten()[None, :whole]

    def rules(self, vocabulary: Vocabulary) -> Rules:
        return GroupRules(self.size)


class GroupRules:
    """Units until a column that is filled up or ends; what follows a fill in it is not read."""

    def __init__(self, size: int) -> None:
        open_names = ["unit0|end", *(f"unit{row}|pad|end" for row in range(1, size))]
        self._names = {"open": tuple(open_names), "full": ("end",) * size}
        self.start: Hashable = "open"

    def at(self, state: Any) -> tuple[str, ...]:
        return self._names[str(state)]

    def all(self) -> Iterable[tuple[str, ...]]:
        return self._names.values()

    def advance(self, state: Any, column: Sequence[int]) -> Hashable | None:
        if END in column:
            return None
        return "full" if state == "full" or PAD in column else "open"
