"""Plain features: their rate, their normalisation, and the units that k-means makes of them."""

from __future__ import annotations

import pytest
import torch

from speechlm.errors import InputError
from speechlm.evaluation.features import FRAME_RATE, SAMPLE_RATE, kmeans_units, plain_features


@pytest.mark.parametrize(("name", "width"), [("mfcc", 39), ("logmel", 80)])
def test_each_feature_has_mean_0_and_variance_1_at_100_hz(name: str, width: int) -> None:
    wave = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(1))
    frames = plain_features(0.1 * wave, name)
    assert frames.shape == (int(FRAME_RATE), width)
    torch.testing.assert_close(frames.mean(0), torch.zeros(width), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(0, correction=0), torch.ones(width), atol=1e-3, rtol=0)
    # How loud it is does not matter.
    torch.testing.assert_close(plain_features(0.01 * wave, name), frames, atol=2e-2, rtol=0)


def test_a_frame_lies_in_the_middle_of_what_it_hears() -> None:
    wave = 0.001 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(1))
    wave[8000:8160] += torch.sin(torch.arange(160) * 0.7)  # what frame 50 is about
    loudness = plain_features(wave, "logmel").mean(1)
    assert int(loudness.argmax()) == 50


def test_units_of_k_means_repeat_and_keep_what_is_far_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    features = {name: torch.randn(50, 3, generator=generator) for name in ("a", "b")}
    features["b"] += 100
    units = kmeans_units(features, 4, seed=1)
    assert all(torch.equal(kmeans_units(features, 4, seed=1)[name], units[name]) for name in units)
    assert not set(units["a"].tolist()) & set(units["b"].tolist())
    with pytest.raises(InputError, match="expected features mfcc or logmel, got 'lpc'"):
        plain_features(torch.zeros(400), "lpc")
