"""Two speakers frame by frame: units to the cells of a grid, and cells back to units, as they come.

With delays a frame's cells stand in several columns. Here each side keeps just the frames or
columns that are still needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from speechlm.errors import InputError
from speechlm.layouts.grid import Layout
from speechlm.layouts.monologue import Monologue
from speechlm.layouts.vocabulary import Vocabulary, check_units


def is_duplex(layout: Layout) -> bool:
    """Whether a layout holds two speakers, so that a model of it listens while it speaks."""
    return isinstance(layout, Monologue) and layout.other


def two_speakers(layout: Layout) -> Monologue:
    """The layout, if it holds two speakers.

    Raises:
        InputError: It does not.
    """
    if not isinstance(layout, Monologue) or not layout.other:
        raise InputError(
            f"expected a layout of two speakers, 'duplex', got {layout.name!r}: it answers whole "
            "turns"
        )
    return layout


class OtherSpeaker:
    """What the other speaker says, from units to the live cells of a duplex layout."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary) -> None:
        duplex = two_speakers(layout)
        self._delays = duplex.delays[-duplex.num_live_rows :]
        first = len(vocabulary.stream_sizes) - duplex.num_live_rows
        self._ranges = [
            vocabulary.unit_range(first + stream) for stream in range(duplex.num_live_rows)
        ]
        # Cells of columns that are not whole yet; before a row's first frame there is fill.
        self._rows = [
            torch.full((delay,), vocabulary.pad, dtype=torch.int64) for delay in self._delays
        ]

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m], m >= 0; give the columns now whole, int64 [K, n].

        After m frames in all, m + the least delay columns have come: some before any frame.

        Raises:
            InputError: Another number of codebooks, or units beyond the vocabulary.
        """
        if codes.ndim != 2 or len(codes) != len(self._rows) or codes.dtype != torch.int64:
            raise InputError(
                f"expected units int64 [{len(self._rows)}, m], got {codes.dtype} "
                f"{list(codes.shape)}"
            )
        for row, ids in zip(codes, self._ranges, strict=True):
            check_units(row, len(ids))
        self._rows = [
            torch.cat([waiting, row + ids.start])
            for waiting, row, ids in zip(self._rows, codes, self._ranges, strict=True)
        ]
        count = min(map(len, self._rows))
        whole = torch.stack([row[:count] for row in self._rows])
        self._rows = [row[count:] for row in self._rows]
        return whole


class OwnSpeech:
    """What the model says, from drawn columns to units, and to text where there is some."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary) -> None:
        duplex = two_speakers(layout)
        self._num_text = int(duplex.text)
        own = slice(self._num_text, self._num_text + duplex.num_codebooks)
        self._own = own
        self._delays = duplex.delays[own]
        self._firsts = torch.tensor(
            [vocabulary.unit_range(stream).start for stream in range(duplex.num_codebooks)]
        )
        self._text_range = vocabulary.text_range
        self._columns: deque[Sequence[int]] = deque(maxlen=max(self._delays) + 1)

    @property
    def delay(self) -> int:
        """Columns after the first until the first frame is whole."""
        return max(self._delays)

    def push(self, column: Sequence[int]) -> Tensor:
        """Take a column of R ids; give the frame that it completes, int64 [K, 1], or [K, 0]."""
        self._columns.append(column[self._own])
        if len(self._columns) <= self.delay:
            return torch.zeros(len(self._delays), 0, dtype=torch.int64)
        cells = [self._columns[delay][row] for row, delay in enumerate(self._delays)]
        return (torch.tensor(cells) - self._firsts)[:, None]

    def text_token(self, column: Sequence[int]) -> int | None:
        """The text token in a column, the text tokenizer's own id; None where there is none."""
        if not self._num_text or column[0] not in self._text_range:
            return None
        return column[0] - self._text_range.start
