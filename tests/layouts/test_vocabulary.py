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
    assert ids.tolist() == [len(CONTROLS) + unit for unit in units]
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
    assert Vocabulary.from_dict(turned).fingerprint == VOCABULARY.fingerprint


def test_several_streams_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"1 codebook.*supports, got 8"):
        Vocabulary(tokenizer_fingerprint="codec", stream_sizes=(1024,) * 8)


def test_a_unit_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match=r"units in 0\.\.19, got 0\.\.20"):
        VOCABULARY.units_to_ids(torch.tensor([[0, 20]]))
    with pytest.raises(InputError, match="got -1"):
        VOCABULARY.units_to_ids(torch.tensor([[-1]]))
    with pytest.raises(InputError, match=r"ids of units, 5\.\.24, got 1\.\.1"):
        VOCABULARY.ids_to_units(torch.tensor([VOCABULARY.end]))
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
