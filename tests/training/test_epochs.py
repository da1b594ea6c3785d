"""Which sequences an epoch visits, and what batches of them hold."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_sequences import sequences_of
from toy_store import write_toy_store

from speechlm.training.batches import UnitBatch
from speechlm.training.epochs import (
    cut_evenly,
    cut_into_batches,
    epoch_batches,
    epoch_order,
    sequence_seed,
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "units"
    write_toy_store(path)
    return path


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 200),
    st.integers(0, 2**40),
)
def test_batches_hold_every_sequence_once_within_the_limit(
    lengths: list[int], batch_units: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator)
    batches = cut_into_batches(
        order, torch.tensor(lengths), batch_units=batch_units, generator=generator
    )
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[number] for number in batch)
        assert len(batch) == 1 or len(batch) * longest <= batch_units


def test_an_epoch_visits_each_conversation_once_and_its_share_of_speech(toy: Path) -> None:
    train = sequences_of(toy)
    generator = torch.Generator().manual_seed(0)
    order = epoch_order(train, speech_fraction=0.2, generator=generator)
    conversations = order[order < train.num_conversations]
    assert sorted(conversations.tolist()) == list(range(train.num_conversations))
    assert len(order) - len(conversations) == round(train.num_conversations * 0.25)
    none = epoch_order(train, speech_fraction=0.0, generator=generator)
    assert len(none) == train.num_conversations
    only = epoch_order(train, speech_fraction=1.0, generator=generator)
    assert sorted(only.tolist()) == list(range(train.num_conversations, len(train)))


def test_epochs_differ_and_repeat(toy: Path) -> None:
    train = sequences_of(toy)

    def epoch(number: int, seed: int = 1) -> list[list[int]]:
        return list(
            epoch_batches(train, speech_fraction=0.1, batch_units=200, seed=seed, epoch=number)
        )

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=2)
    assert len({sequence_seed(s, e, i) for s in (1, 2) for e in (0, 1) for i in (0, 1)}) == 8


def test_little_of_a_batch_is_padding(toy: Path) -> None:
    train = sequences_of(toy)
    lengths = train.lengths()
    batches = epoch_batches(train, speech_fraction=0.05, batch_units=200, seed=1, epoch=0)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    real = sum(int(lengths[batch].sum()) for batch in batches)
    assert real / padded > 0.9
    assert sorted(itertools.chain(*cut_evenly(train, batch_units=200))) == list(range(len(train)))


@pytest.mark.parametrize("layout", ["parallel", "delay"])
def test_a_batch_predicts_what_counts(tmp_path: Path, layout: str) -> None:
    write_toy_store(tmp_path, num_codebooks=2, num_questions=12)
    train = sequences_of(tmp_path, layout=layout)
    chosen = [train.sequence(number) for number in (0, 5, train.num_conversations)]
    batch = UnitBatch(chosen, num_rows=2, pad=0)
    count, rows, columns = batch.ids.shape
    assert (count, rows, columns) == (3, 2, max(len(sequence) for sequence in chosen) - 1)
    expected = [
        (number * columns + position - 1, sequence.ids[:, position].tolist())
        for number, sequence in enumerate(chosen)
        for position in range(1, len(sequence))
        if sequence.loss_weights[:, position].sum() > 0
    ]
    assert list(zip(batch.select.tolist(), batch.targets.tolist(), strict=True)) == expected
    counted = sum(float(sequence.loss_weights.sum()) for sequence in chosen)
    assert float(batch.weights.sum()) == counted
    assert batch.num_positions == sum(len(sequence) for sequence in chosen)


def test_an_empty_batch_counts_nothing() -> None:
    batch = UnitBatch([], num_rows=2, pad=0)
    assert batch.ids.shape == (1, 2, 1)
    assert batch.select.shape == (0,)
    assert batch.targets.shape == batch.weights.shape == (0, 2)
