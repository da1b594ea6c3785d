from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from speechlm.evaluation.signal.pitch_errors import pitch_figures, track_hz


def values(reference: list[float], other: list[float]) -> dict[str, float]:
    found = pitch_figures(np.array(reference), np.array(other))
    return {name: total / count for name, (total, count) in found.items()}


def test_the_same_pitch_has_no_errors() -> None:
    found = values([0, 100, 110, 0, 120], [0, 100, 110, 0, 120])
    assert found.pop("f0_corr") == pytest.approx(1)
    assert set(found.values()) == {0}
    assert list(found) == ["vde", "ffe", "gpe", "f0_rmse_hz", "f0_rmse_cents"]


def test_each_figure_is_its_formula() -> None:
    found = values([0, 0, 100, 200, 200, 150], [0, 90, 0, 220, 400, 150])
    assert found["vde"] == pytest.approx(100 * 2 / 6)
    assert found["gpe"] == pytest.approx(100 * 1 / 3)
    assert found["ffe"] == pytest.approx(100 * 3 / 6)
    assert found["f0_rmse_hz"] == pytest.approx(math.sqrt((20**2 + 200**2) / 3))
    cents = [1200 * math.log2(1.1), 1200.0, 0.0]
    assert found["f0_rmse_cents"] == pytest.approx(math.sqrt(sum(c * c for c in cents) / 3))
    expected = np.corrcoef([200, 200, 150], [220, 400, 150])[0, 1]
    assert found["f0_corr"] == pytest.approx(expected)


def test_unvoiced_frames_have_no_pitch_to_be_wrong() -> None:
    voiced = values([100, 120], [110, 130])
    padded = values([100, 120, *[0] * 50], [110, 130, *[0] * 50])
    assert padded["f0_rmse_hz"] == voiced["f0_rmse_hz"] == pytest.approx(10)
    assert padded["f0_corr"] == voiced["f0_corr"]


def test_what_frames_do_not_tell_is_left_out() -> None:
    assert set(values([0, 100], [100, 0])) == {"vde", "ffe"}
    assert "f0_corr" not in values([100, 100], [100, 110])


@pytest.mark.parametrize("hertz", [90.0, 220.0])
def test_a_voice_is_tracked_in_hertz(hertz: float) -> None:
    times = torch.arange(8_000) / 16_000
    wave = sum((2 * math.pi * hertz * k * times).sin() / k for k in range(1, 12))
    assert isinstance(wave, torch.Tensor)
    found = track_hz(torch.cat([0.1 * wave, torch.zeros(8_000)]), 16_000, 160)
    assert len(found) == 101
    assert found[5:45] == pytest.approx(hertz, rel=0.01)
    assert not found[55:].any()
