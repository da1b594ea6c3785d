"""Another rate for a stream: the same however it is cut, and the same as the whole at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from small_codecs import speechlike

from speechlm.audio import resample
from speechlm.dialogue.resampling import StreamResampler
from speechlm.dialogue.settings import RATES

rates = st.sampled_from(RATES)


def streamed(samples: torch.Tensor, rate: int, new_rate: int, sizes: list[int]) -> torch.Tensor:
    stream = StreamResampler(rate, new_rate)
    parts = list(torch.split(samples, sizes)) if sizes else [samples]
    return torch.cat([*(stream.push(part) for part in parts), stream.finish()])


@limits(max_examples=30, deadline=None)
@given(rates, rates, st.lists(st.integers(0, 900), max_size=12))
def test_no_cut_changes_a_sample(rate: int, new_rate: int, sizes: list[int]) -> None:
    samples = speechlike(sum(sizes))
    cut = streamed(samples, rate, new_rate, sizes)
    assert torch.equal(cut, streamed(samples, rate, new_rate, []))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("new_rate", [16_000, 24_000])
def test_it_is_what_resampling_the_whole_gives(rate: int, new_rate: int) -> None:
    samples = speechlike(rate // 4 + 17)
    found = streamed(samples, rate, new_rate, [])
    whole = resample(samples, rate, new_rate)
    assert found.shape == whole.shape
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", RATES)
def test_it_holds_back_no_more_than_it_says(rate: int) -> None:
    stream = StreamResampler(rate, 16_000)
    for count in range(1, rate // 5, 173):
        stream = StreamResampler(rate, 16_000)
        given_back = len(stream.push(torch.zeros(count)))
        assert given_back >= (count - stream.delay) * 16_000 // rate
