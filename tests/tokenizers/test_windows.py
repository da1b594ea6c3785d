"""Windows hang on what was pushed in all, never on how it was cut."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlm_tokenizers.windows import Window, Windows

SIZES = {"size": 5, "before": 3, "after": 2}


def cut(length: int, chunks: list[int], sizes: dict[str, int]) -> list[Window]:
    windows, found, rest = Windows(**sizes), [], torch.arange(length)
    for chunk in chunks:
        found += windows.push(rest[:chunk])
        rest = rest[chunk:]
    found += windows.push(rest)
    last = windows.finish()
    return found if last is None else [*found, last]


def described(windows: list[Window]) -> list[tuple[list[int], int, int]]:
    return [(window.content.tolist(), window.skip, window.keep) for window in windows]


@given(
    length=st.integers(0, 60),
    chunks=st.lists(st.integers(0, 20)),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    first=st.none() | st.integers(1, 12),
)
def test_they_are_the_same_however_it_is_cut_and_cover_all_of_it_once(
    length: int, chunks: list[int], before: int, after: int, first: int | None
) -> None:
    sizes = {"size": 5, "before": before, "after": after, "first": first}
    found = described(cut(length, chunks, sizes))
    assert found == described(cut(length, [], sizes))
    own = [element for content, skip, keep in found for element in content[skip : skip + keep]]
    assert own == list(range(length))


def test_each_has_as_much_context_as_there_is() -> None:
    found = described(cut(17, [], SIZES))
    assert found == [
        ([0, 1, 2, 3, 4, 5, 6], 0, 5),
        ([2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 3, 5),
        ([7, 8, 9, 10, 11, 12, 13, 14, 15, 16], 3, 5),
        ([12, 13, 14, 15, 16], 3, 2),
    ]


def test_what_is_left_within_the_last_ones_context_goes_with_it() -> None:
    assert described(cut(6, [], SIZES)) == [([0, 1, 2, 3, 4, 5], 0, 6)]


def test_a_window_comes_as_soon_as_its_context_is_there() -> None:
    windows = Windows(**SIZES)
    assert not list(windows.push(torch.arange(6)))
    assert len(list(windows.push(torch.arange(1)))) == 1


def test_many_small_pieces_are_put_together() -> None:
    windows = Windows(2000)
    found = [window for _ in range(2000) for window in windows.push(torch.ones(1))]
    assert described(found) == [([1.0] * 2000, 0, 2000)]
