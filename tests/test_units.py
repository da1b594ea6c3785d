import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speechlm.errors import InputError
from speechlm.units import Units, collapse_repeats


@st.composite
def codes(draw: st.DrawFn) -> Tensor:
    num_codebooks = draw(st.integers(1, 3))
    frame = st.lists(st.integers(0, 2), min_size=num_codebooks, max_size=num_codebooks)
    frames = draw(st.lists(frame, max_size=20))
    return torch.tensor(frames, dtype=torch.int64).reshape(-1, num_codebooks).T


def units(values: Tensor) -> Units:
    return Units(codes=values, frame_rate=50.0, fingerprint="some-tokenizer")


@given(codes())
def test_collapsing_is_undone_by_expanding(values: Tensor) -> None:
    collapsed = units(values).collapse()
    assert torch.equal(collapsed.expand().codes, values)
    assert collapsed.num_frames == values.shape[1]
    assert collapsed.duration_s == values.shape[1] / 50


@given(codes())
def test_no_two_neighbours_are_equal_once_collapsed(values: Tensor) -> None:
    merged, durations = collapse_repeats(values)
    assert (merged[:, 1:] != merged[:, :-1]).any(dim=0).all()
    assert durations.sum() == values.shape[1]
    assert (durations >= 1).all()


def test_frames_are_equal_only_when_every_codebook_is() -> None:
    merged, durations = collapse_repeats(torch.tensor([[1, 1, 1], [2, 2, 3]]))
    assert merged.tolist() == [[1, 1], [2, 3]]
    assert durations.tolist() == [2, 1]


def test_collapsing_twice_changes_nothing_more() -> None:
    once = units(torch.tensor([[1, 1, 2]])).collapse()
    assert once.collapse() is once
    assert units(torch.tensor([[1, 1]])).expand().durations is None


@pytest.mark.parametrize(
    "values", [torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3), torch.zeros(1, 3).int()]
)
def test_codes_of_another_shape_or_type_are_refused(values: Tensor) -> None:
    with pytest.raises(InputError, match=r"expected units as int64 \[K, F\], got torch\."):
        units(values)


def test_durations_must_match_the_codes() -> None:
    with pytest.raises(InputError, match=r"expected one duration a unit, \[3\], got \[2\]"):
        Units(
            codes=torch.zeros(1, 3, dtype=torch.int64),
            frame_rate=50.0,
            fingerprint="some-tokenizer",
            durations=torch.ones(2, dtype=torch.int64),
        )


def test_units_that_last_unequally_long_are_no_repeats() -> None:
    merged = Units(
        codes=torch.tensor([[5, 5, 9]]),
        frame_rate=50.0,
        fingerprint="some-tokenizer",
        durations=torch.tensor([2, 1, 3]),
        variable_rate=True,
    )
    assert merged.collapse() is merged
    assert merged.expand() is merged
    assert merged.num_frames == 6
    assert [merged.unit_at(frame) for frame in range(7)] == [0, 0, 1, 2, 2, 2, 3]
