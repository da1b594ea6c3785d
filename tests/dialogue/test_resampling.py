"""Sound at another rate, as it comes: the same however it is cut, and what resampling gives."""

from __future__ import annotations

import pytest
import torch
from torchaudio.functional import resample

from speechlm.dialogue.resampling import StreamResampler


def streamed(wave: torch.Tensor, rate: int, new_rate: int, cut: int) -> torch.Tensor:
    stream = StreamResampler(rate, new_rate)
    pieces = [stream.push(wave[at : at + cut]) for at in range(0, len(wave), cut)]
    return torch.cat([*pieces, stream.finish()])


@pytest.mark.parametrize(
    ("rate", "new_rate"),
    [(24_000, 16_000), (16_000, 24_000), (48_000, 16_000), (44_100, 16_000), (16_000, 16_000)],
)
def test_a_stream_does_not_depend_on_how_it_is_cut(rate: int, new_rate: int) -> None:
    wave = 0.3 * torch.randn(rate // 2, generator=torch.Generator().manual_seed(0))
    whole = streamed(wave, rate, new_rate, len(wave))
    for cut in (7, 160, 481):
        assert torch.equal(streamed(wave, rate, new_rate, cut), whole)
    torch.testing.assert_close(whole, resample(wave, rate, new_rate), rtol=0, atol=1e-5)


def test_sound_does_not_wait_for_its_end() -> None:
    stream = StreamResampler(24_000, 16_000)
    given = stream.push(torch.zeros(2_400))
    assert 1_600 - 2 * 160 <= len(given) <= 1_600, "at most two blocks of 10 ms are held back"
