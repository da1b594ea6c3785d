from pathlib import Path

import pytest
import torch
from toy_sequences import sequences_of
from toy_store import NUM_UNITS, recording, write_rows, write_toy_store

from speechlm.errors import ConfigError, CorpusError, InputError
from speechlm.training.sequences import SequenceSet


def decoded(sequences: SequenceSet, number: int) -> dict[str, list[list[int]]]:
    ids = sequences.sequence(number).ids
    content = sequences.layout.decode(sequences.vocabulary, ids)
    return {name: field.tolist() for name, field in content.items()}


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
    assert (train.num_conversations, train.num_speech) == (1, 2)
    assert train.describe_left_out() == ["left out 1 questions: no reply in the unit store"]
    conversation, *speech = (decoded(train, number) for number in range(3))
    assert conversation == {"question": [[1, 2, 3]], "answer": [[7, 8]]}
    assert speech == [{"speech": [[7, 8]]}, {"speech": [[4]]}]
    valid = sequences_of(tmp_path, "valid")
    assert (valid.num_conversations, valid.num_speech) == (1, 0)
    assert decoded(valid, 0) == {"question": [[5]], "answer": [[7, 8]]}


@pytest.mark.parametrize(
    ("num_codebooks", "layout"),
    [
        (1, "flat"),
        (1, "flat {collapse: true}"),
        (1, "grouped"),
        (2, "flattened"),
        (2, "parallel"),
        (2, "delay {delays: [0, 2]}"),
        (2, "coarse-first"),
    ],
)
def test_lengths_are_those_of_the_sequences(
    tmp_path: Path, num_codebooks: int, layout: str
) -> None:
    write_toy_store(tmp_path, num_codebooks=num_codebooks, num_questions=30)
    train = sequences_of(tmp_path, layout=layout)
    assert train.num_conversations > 20
    assert train.num_speech == 10
    lengths = [len(train.sequence(number)) for number in range(len(train))]
    assert train.lengths().tolist() == lengths


def test_long_speech_is_cut_and_a_long_conversation_left_out(tmp_path: Path) -> None:
    units = [number % NUM_UNITS for number in range(25)]
    write_rows(
        tmp_path,
        [recording("long", units), recording("question", [1] * 6, reply="long")],
    )
    train = sequences_of(tmp_path, max_length=12)
    assert (train.num_conversations, train.num_speech) == (0, 3)
    (line,) = train.describe_left_out()
    assert line.startswith("left out 1 conversations: longer than 12 LM positions (model.max_")
    pieces = [train.sequence(number).ids[0] for number in range(3)]
    assert all(len(piece) <= 12 for piece in pieces)
    assert train.lengths().tolist() == [len(piece) for piece in pieces]
    vocabulary = train.vocabulary
    assert [int(piece[-1]) == vocabulary.end for piece in pieces] == [False, False, True]
    together = torch.cat([piece[piece >= vocabulary.first_unit] for piece in pieces])
    assert (together - vocabulary.first_unit).tolist() == units


@pytest.mark.parametrize("layout", ["parallel", "delay", "flattened", "coarse-first"])
def test_several_streams_are_cut_too(tmp_path: Path, layout: str) -> None:
    units = torch.arange(50).view(2, 25)
    write_rows(tmp_path, [recording("long", units.tolist())], num_codebooks=2)
    train = sequences_of(tmp_path, layout=layout, max_length=17)
    pieces = [train.sequence(number) for number in range(len(train))]
    assert len(pieces) > 1
    assert all(len(piece) <= 17 for piece in pieces)
    end = train.vocabulary.end
    ends = [int(piece.loss_weights[piece.ids == end].sum() > 0) for piece in pieces]
    assert ends == [0] * (len(pieces) - 1) + [1]
    held = torch.cat([piece.ids.flatten() for piece in pieces])
    held = held[held >= train.vocabulary.first_unit] - train.vocabulary.first_unit
    assert sorted((held % NUM_UNITS).tolist()) == list(range(50))


def test_no_room_for_one_frame_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, [recording("a", [[1], [2]])], num_codebooks=2)
    with pytest.raises(ConfigError, match=r"one frame of the layout 'flattened' is longer than 3"):
        sequences_of(tmp_path, layout="flattened", max_length=3)


def test_nothing_to_train_on_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_rows(tmp_path, [recording("lost", [6], reply="nowhere")])
    with pytest.raises(CorpusError, match=r"to train on: left out 1 questions: no reply"):
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
    turn = int((plain.ids[0] == train.vocabulary.assistant).nonzero())
    changed = (dropped.ids[0] != plain.ids[0]).nonzero().flatten()
    assert len(changed) > 0
    assert int(changed.max()) < turn
    last = train.num_conversations
    assert torch.equal(train.sequence(last, unit_dropout=0.9, seed=1).ids, train.sequence(last).ids)


def test_what_a_store_does_not_hold_is_refused(toy: Path) -> None:
    message = r"the layout 'prosody' lays out 3 streams, the unit store holds 1"
    with pytest.raises(InputError, match=message):
        sequences_of(toy, layout="prosody")


def test_the_channels_of_a_dialogue_are_laid_out_side_by_side(tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        [
            recording("d.user", [1, 2, 3], split="train", reply="d.model"),
            recording("d.model", [7, 8, 9], split="train"),
            recording("e.user", [1, 2], split="train", reply="e.model"),
            recording("e.model", [7], split="train"),
            recording("alone", [4], split="train"),
        ],
    )
    train = sequences_of(tmp_path, layout="duplex")
    assert (train.num_conversations, train.num_speech) == (1, 0)
    assert decoded(train, 0) == {"self": [[7, 8, 9]], "other": [[1, 2, 3]]}
    assert train.describe_left_out() == [
        "left out 1 conversations: two channels that differ in length",
        "left out 1 recordings: no other speaker beside them",
    ]


def test_a_long_dialogue_is_cut_in_both_channels_and_ends_once(tmp_path: Path) -> None:
    frames = list(range(25))
    write_rows(
        tmp_path,
        [
            recording("user", frames, split="train", reply="model"),
            recording("model", frames[::-1], split="train"),
        ],
    )
    train = sequences_of(tmp_path, layout="duplex", max_length=12)
    sequences = [train.sequence(number) for number in range(len(train))]
    assert [len(sequence) for sequence in sequences] == train.lengths().tolist()
    assert max(map(len, sequences)) <= 12
    end = train.vocabulary.end
    ends = [bool((sequence.ids == end).any()) for sequence in sequences]
    assert ends == [False] * (len(train) - 1) + [True]
    firsts = [train.vocabulary.unit_range(stream).start for stream in range(2)]
    rows = torch.cat(
        [
            s.ids[:, 1:-1] if ended else s.ids[:, 1:]
            for s, ended in zip(sequences, ends, strict=True)
        ],
        dim=1,
    )
    assert (rows - torch.tensor(firsts)[:, None]).tolist() == [frames[::-1], frames]


def test_unit_dropout_touches_the_other_speaker_alone(tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        [
            recording("user", [1] * 40, split="train", reply="model"),
            recording("model", [2] * 40, split="train"),
        ],
    )
    train = sequences_of(tmp_path, layout="duplex")
    plain, dropped = train.sequence(0), train.sequence(0, unit_dropout=0.5, seed=1)
    changed = (plain.ids != dropped.ids).sum(dim=1)
    assert changed[0] == 0
    assert 8 < changed[1] < 32
