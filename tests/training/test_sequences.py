import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import FINGERPRINT, NUM_UNITS, recording, write_rows, write_toy_store

from speechlm.data.store import UnitStore
from speechlm.errors import CorpusError
from speechlm.layouts.conversation import decode_conversation, decode_speech
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.training.batches import UnitBatch
from speechlm.training.sequences import (
    SequenceSet,
    cut_evenly,
    cut_into_batches,
    epoch_batches,
    epoch_order,
    sequence_seed,
)

VOCABULARY = Vocabulary(tokenizer_fingerprint=FINGERPRINT, stream_sizes=(NUM_UNITS,))


def sequences_of(path: Path, split: str = "train", max_length: int = 64) -> SequenceSet:
    return SequenceSet.of_split(
        UnitStore.open(path), VOCABULARY, split, question_weight=0.0, max_length=max_length
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "units"
    write_toy_store(path)
    return path


def test_questions_become_conversations_and_the_rest_speech(tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        [
            recording("one", [1, 2, 3], split="train", reply="answer"),
            recording("answer", [7, 8]),
            recording("alone", [4], split="train"),
            recording("other", [5], split="valid", reply="answer"),
            recording("lost", [6], split="train", reply="nowhere"),
        ],
    )
    train = sequences_of(tmp_path)
    assert (train.num_conversations, train.num_speech, train.num_unanswered) == (1, 2, 1)
    asked, answered = decode_conversation(VOCABULARY, train.sequence(0).ids)
    assert (asked.tolist(), answered.tolist()) == ([[1, 2, 3]], [[7, 8]])
    speech = [decode_speech(VOCABULARY, train.sequence(n).ids).tolist() for n in (1, 2)]
    assert speech == [[[7, 8]], [[4]]]
    valid = sequences_of(tmp_path, "valid")
    assert (valid.num_conversations, valid.num_speech) == (1, 0)
    assert valid.sequence(0).ids.tolist() == [2, 10, 3, 12, 13, 1]


def test_lengths_are_those_of_the_sequences(toy: Path) -> None:
    train = sequences_of(toy)
    lengths = [len(train.sequence(number)) for number in range(len(train))]
    assert train.lengths().tolist() == lengths


def test_long_speech_is_cut_and_a_long_conversation_left_out(tmp_path: Path) -> None:
    units = [number % NUM_UNITS for number in range(25)]
    write_rows(
        tmp_path,
        [recording("long", units), recording("question", [1] * 6, reply="long")],
    )
    train = sequences_of(tmp_path, max_length=12)
    assert (train.num_conversations, train.num_too_long, train.num_speech) == (0, 1, 3)
    pieces = [train.sequence(number).ids for number in range(3)]
    assert all(len(piece) <= 12 for piece in pieces)
    assert train.lengths().tolist() == [len(piece) for piece in pieces]
    assert [int(piece[-1]) == VOCABULARY.end for piece in pieces] == [False, False, True]
    together = torch.cat([piece[piece >= VOCABULARY.first_unit] for piece in pieces])
    assert (together - VOCABULARY.first_unit).tolist() == units


def test_nothing_to_train_on_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_rows(tmp_path, [recording("lost", [6], reply="nowhere")])
    with pytest.raises(CorpusError, match=r"no sequence to train on: 1 questions lack"):
        sequences_of(tmp_path).check_not_empty(tmp_path)


def test_fingerprint_changes_with_units_and_order(tmp_path: Path) -> None:
    rows = [recording("a", [1, 2]), recording("b", [3, 4])]
    changed = [recording("a", [1, 2]), recording("b", [3, 5])]
    prints = []
    for name, stored in {"x": rows, "y": rows, "z": changed, "w": rows[::-1]}.items():
        write_rows(tmp_path / name, stored)
        prints.append(sequences_of(tmp_path / name).fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_unit_dropout_touches_questions_alone_and_repeats(toy: Path) -> None:
    train = sequences_of(toy)
    plain = train.sequence(3)
    dropped = train.sequence(3, unit_dropout=0.5, seed=1)
    assert torch.equal(dropped.ids, train.sequence(3, unit_dropout=0.5, seed=1).ids)
    assert not torch.equal(dropped.ids, train.sequence(3, unit_dropout=0.5, seed=2).ids)
    turn = int((plain.ids == VOCABULARY.assistant).nonzero())
    changed = (dropped.ids != plain.ids).nonzero().flatten()
    assert len(changed) > 0
    assert int(changed.max()) < turn
    last = train.num_conversations
    assert torch.equal(train.sequence(last, unit_dropout=0.9, seed=1).ids, train.sequence(last).ids)


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


def test_a_batch_predicts_what_counts(toy: Path) -> None:
    train = sequences_of(toy)
    chosen = [train.sequence(number) for number in (0, 5, train.num_conversations)]
    batch = UnitBatch(chosen, VOCABULARY.pad)
    rows, columns = batch.ids.shape
    assert columns == max(len(sequence) for sequence in chosen) - 1
    expected = [
        (row * columns + position - 1, int(sequence.ids[position]))
        for row, sequence in enumerate(chosen)
        for position in range(1, len(sequence))
        if sequence.loss_weights[position] > 0
    ]
    assert list(zip(batch.select.tolist(), batch.targets.tolist(), strict=True)) == expected
    assert rows == 3
    assert batch.weights.tolist() == [1.0] * len(expected)
    assert batch.num_positions == sum(len(sequence) for sequence in chosen)


def test_an_empty_batch_counts_nothing() -> None:
    batch = UnitBatch([], VOCABULARY.pad)
    assert batch.ids.shape == (1, 1)
    assert batch.select.shape == batch.targets.shape == batch.weights.shape == (0,)
