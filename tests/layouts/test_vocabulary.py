from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlm.errors import CheckpointError, FingerprintError, InputError
from speechlm.layouts.vocabulary import CONTROLS, Vocabulary
from speechlm.units import Units

VOCABULARY = Vocabulary(tokenizer_fingerprint="logmel-kmeans-01", stream_sizes=(20,))


@given(st.lists(st.integers(0, 19), max_size=40))
def test_ids_undo_units(units: list[int]) -> None:
    codes = torch.tensor([units], dtype=torch.int64)
    ids = VOCABULARY.units_to_ids(codes)
    assert ids.tolist() == [[len(CONTROLS) + unit for unit in units]]
    assert torch.equal(VOCABULARY.ids_to_units(ids), codes)


def test_controls_come_first_and_are_all_different() -> None:
    controls = [getattr(VOCABULARY, name) for name in CONTROLS]
    assert controls == list(range(len(CONTROLS)))
    assert VOCABULARY.first_unit == len(CONTROLS)
    assert VOCABULARY.size == len(CONTROLS) + 20


def test_fingerprint_tells_apart_tokenizer_and_sizes() -> None:
    other_size = Vocabulary(tokenizer_fingerprint="logmel-kmeans-01", stream_sizes=(21,))
    other_tokenizer = Vocabulary(tokenizer_fingerprint="logmel-kmeans-02", stream_sizes=(20,))
    same = Vocabulary(tokenizer_fingerprint="logmel-kmeans-01", stream_sizes=(20,))
    prints = {v.fingerprint for v in (VOCABULARY, other_size, other_tokenizer, same)}
    assert len(prints) == 3
    assert same.fingerprint == VOCABULARY.fingerprint


def test_dict_round_trip_does_not_depend_on_key_order() -> None:
    values = VOCABULARY.to_dict()
    turned = dict(reversed(values.items()))
    assert Vocabulary.from_dict(turned) == VOCABULARY
    assert Vocabulary.from_dict(JOINT.to_dict()) == JOINT
    assert Vocabulary.from_dict(turned).fingerprint == VOCABULARY.fingerprint


JOINT = Vocabulary(
    tokenizer_fingerprint="codec-01",
    stream_sizes=(4, 3, 2),
    text_size=10,
    text_fingerprint="words-01",
)


def test_controls_then_text_then_the_streams_in_order() -> None:
    assert JOINT.text_range == range(7, 17)
    assert [JOINT.unit_range(stream) for stream in range(3)] == [
        range(17, 21),
        range(21, 24),
        range(24, 26),
    ]
    assert JOINT.size == 26
    codes = torch.tensor([[3, 0], [0, 2], [1, 1]])
    ids = JOINT.units_to_ids(codes)
    assert ids.tolist() == [[20, 17], [21, 23], [25, 25]]
    assert torch.equal(JOINT.ids_to_units(ids), codes)
    tokens = torch.tensor([0, 9])
    assert JOINT.text_to_ids(tokens).tolist() == [7, 16]
    assert torch.equal(JOINT.ids_to_text(JOINT.text_to_ids(tokens)), tokens)


def test_another_text_tokenizer_is_refused_though_sizes_agree() -> None:
    other = replace(JOINT, text_fingerprint="words-02")
    assert other.size == JOINT.size
    assert other.fingerprint != JOINT.fingerprint
    JOINT.check_text("words-01")
    with pytest.raises(FingerprintError, match=r"words-01.*words-02"):
        JOINT.check_text("words-02")
    with pytest.raises(FingerprintError, match="no text"):
        VOCABULARY.check_text("words-02")


def test_no_stream_no_unit_and_half_a_text_tokenizer_are_refused() -> None:
    with pytest.raises(InputError, match=r"at least 1 codebook, got K = 0"):
        Vocabulary(tokenizer_fingerprint="codec", stream_sizes=())
    with pytest.raises(InputError, match="at least 1 unit a stream, got 0"):
        Vocabulary(tokenizer_fingerprint="codec", stream_sizes=(8, 0))
    with pytest.raises(InputError, match="size and the fingerprint"):
        Vocabulary(tokenizer_fingerprint="codec", stream_sizes=(8,), text_size=5)


def test_text_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match=r"text tokens in 0\.\.9, got 0\.\.10"):
        JOINT.text_to_ids(torch.tensor([0, 10]))
    with pytest.raises(InputError, match="text tokens"):
        JOINT.ids_to_text(torch.tensor([17]))


def test_a_unit_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match=r"units in 0\.\.19, got 0\.\.20"):
        VOCABULARY.units_to_ids(torch.tensor([[0, 20]]))
    with pytest.raises(InputError, match="got -1"):
        VOCABULARY.units_to_ids(torch.tensor([[-1]]))
    with pytest.raises(InputError, match=r"ids of units, 7\.\.26, got 1\.\.1"):
        VOCABULARY.ids_to_units(torch.tensor([VOCABULARY.end]))
    with pytest.raises(InputError, match=r"ids \[1, F\]"):
        VOCABULARY.ids_to_units(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"units \[1, F\]"):
        VOCABULARY.units_to_ids(torch.zeros(2, 3, dtype=torch.int64))


def test_units_of_another_tokenizer_are_refused_with_both_names() -> None:
    units = Units(codes=torch.zeros(1, 3).long(), frame_rate=50.0, fingerprint="other-02")
    with pytest.raises(FingerprintError, match=r"logmel-kmeans-01.*other-02"):
        VOCABULARY.check(units)


def test_merged_repeats_are_refused() -> None:
    units = Units(
        codes=torch.zeros(1, 3).long(), frame_rate=50.0, fingerprint="logmel-kmeans-01"
    ).collapse()
    with pytest.raises(InputError, match=r"expand\(\)"):
        VOCABULARY.check(units)


def test_a_saved_vocabulary_of_other_controls_is_refused() -> None:
    with pytest.raises(CheckpointError, match="controls"):
        Vocabulary.from_dict({**VOCABULARY.to_dict(), "controls": ["pad", "end"]})
    with pytest.raises(CheckpointError, match="lacks stream_sizes"):
        Vocabulary.from_dict({"controls": list(CONTROLS), "tokenizer_fingerprint": "x"})
