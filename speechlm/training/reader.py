"""The data as fairseq2 reads it; where a reader stands is part of every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast, final

from fairseq2.datasets import DataReader

from speechlm.config import TrainConfig
from speechlm.layouts.grid import LMSequence
from speechlm.training.batches import UnitBatch
from speechlm.training.epochs import cut_evenly, epoch_batches, sequence_seed
from speechlm.training.sequences import SequenceSet


@final
class TrainReader(DataReader[UnitBatch]):
    """Epoch after epoch without an end, each in its own seeded order.

    All processes see the same batches in the same order, and each takes every n-th.
    """

    def __init__(
        self, sequences: SequenceSet, config: TrainConfig, *, seed: int, rank: int, size: int
    ) -> None:
        self._sequences = sequences
        self._config = config
        self._seed = seed
        self._rank = rank
        self._size = size
        self._epoch = 0
        self._position = 0
        self._batches: Sequence[list[int]] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[UnitBatch]:
        return [self._read() for _ in range(self._config.gradient_accumulation)]

    def reset(self) -> None:
        """Nothing: the trainer resets at the end of the data, and there is none."""

    def state_dict(self) -> dict[str, object]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._epoch = cast(int, state_dict["epoch"])
        self._position = cast(int, state_dict["position"])
        self._batches = None

    @property
    def num_accumulate(self) -> int:
        return self._config.gradient_accumulation

    def _read(self) -> UnitBatch:
        """This process's batch of the next ``size`` ones."""
        for rank in range(self._size):
            numbers = self._advance()
            if rank == self._rank:
                mine, epoch = numbers, self._epoch
        sequences = [
            self._sequences.sequence(
                number,
                unit_dropout=self._config.unit_dropout,
                seed=sequence_seed(self._seed, epoch, number),
            )
            for number in mine
        ]
        return _batch(self._sequences, sequences)

    def _advance(self) -> list[int]:
        if self._batches is None:
            self._batches = self._plan()
        if self._position >= len(self._batches):
            self._epoch += 1
            self._position = 0
            self._batches = self._plan()
        self._position += 1
        return self._batches[self._position - 1]

    def _plan(self) -> Sequence[list[int]]:
        return epoch_batches(
            self._sequences,
            speech_fraction=self._config.speech_fraction,
            batch_units=self._config.batch_units,
            seed=self._seed,
            epoch=self._epoch,
        )


@final
class ValidReader(DataReader[UnitBatch]):
    """Every sequence once, in a fixed order; a process without a batch left gets an empty one."""

    def __init__(self, sequences: SequenceSet, batch_units: int, *, rank: int, size: int) -> None:
        self._sequences = sequences
        batches = cut_evenly(sequences, batch_units=batch_units)
        batches += [[]] * (-len(batches) % size)
        self._batches = batches[rank::size]
        self._position = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[UnitBatch]:
        if self._position == len(self._batches):
            raise StopIteration
        numbers = self._batches[self._position]
        self._position += 1
        sequences = [self._sequences.sequence(number, seed=number) for number in numbers]
        return [_batch(self._sequences, sequences)]

    def reset(self) -> None:
        self._position = 0

    def state_dict(self) -> dict[str, object]:
        return {"position": self._position}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._position = cast(int, state_dict["position"])

    @property
    def num_accumulate(self) -> int:
        return 1


def _batch(source: SequenceSet, sequences: Sequence[LMSequence]) -> UnitBatch:
    return UnitBatch(sequences, num_rows=source.layout.num_rows, pad=source.vocabulary.pad)
