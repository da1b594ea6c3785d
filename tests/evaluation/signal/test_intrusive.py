from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import InputError, PluginError
from speechlm.evaluation.signal import intrusive
from speechlm.evaluation.signal.cepstra import active_frames, cepstra, mel_amplitudes

RATE = 16_000


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return load_audio(human_clips()["november"].path, RATE)


@pytest.fixture(scope="module")
def noisy(reference: Tensor) -> Tensor:
    noise = torch.randn(len(reference), generator=torch.Generator().manual_seed(1))
    return reference + 0.02 * noise


def test_the_same_recording_is_perfect(reference: Tensor) -> None:
    figures = intrusive.aligned_figures(reference, reference)
    assert figures.pop("f0_corr")[0] == pytest.approx(1)
    assert {total for total, _ in figures.values()} == {0}
    assert intrusive.si_sdr(0.3 * reference, reference) == pytest.approx(100, abs=1e-3)
    assert intrusive.mel_distance(reference, reference) == 0


def test_noise_makes_everything_worse(reference: Tensor, noisy: Tensor) -> None:
    figures = intrusive.aligned_figures(noisy, reference)
    assert 1 < figures["mcd13"][0] < 15
    assert intrusive.si_sdr(noisy, reference) < 25
    assert intrusive.mel_distance(noisy, reference) > 0.1


def test_the_distortion_is_that_of_a_slow_alignment(reference: Tensor, noisy: Tensor) -> None:
    found = intrusive.aligned_figures(noisy[: RATE // 3], reference[: RATE // 3])
    first, second = (cepstra(mel_amplitudes(w[: RATE // 3])[0]) for w in (noisy, reference))
    active = active_frames(mel_amplitudes(reference[: RATE // 3])[1])
    cost = np.full((len(first) + 1, len(second) + 1), np.inf)
    cost[0, 0] = 0
    near = np.sqrt(((first[:, None, 1:] - second[None, :, 1:]) ** 2).sum(2))
    for row in range(len(first)):
        for column in range(len(second)):
            ways = cost[row, column], cost[row, column + 1], cost[row + 1, column]
            cost[row + 1, column + 1] = near[row, column] + min(ways)
    row, column, path = len(first), len(second), []
    while row and column:
        path.append((row - 1, column - 1))
        ways = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
        row, column = min(ways, key=lambda way: cost[way])
    for name, skip in (("mcd13", 1), ("mcd13_c0", 0)):
        each = [
            10 / np.log(10) * np.sqrt(2 * ((first[i, skip:] - second[j, skip:]) ** 2).sum())
            for i, j in path
            if active[j]
        ]
        assert found[name][0] == pytest.approx(np.mean(each), rel=1e-6)


def test_another_tempo_changes_little_where_frames_are_aligned(reference: Tensor) -> None:
    frames = reference[: len(reference) // 160 * 160].reshape(-1, 160)
    slower = frames.repeat_interleave(torch.arange(len(frames)) % 10 // 9 + 1, dim=0).flatten()
    figures = intrusive.aligned_figures(slower, reference)
    noise = intrusive.aligned_figures(torch.randn(len(reference)), reference)
    assert figures["mcd13"][0] < 0.5 * noise["mcd13"][0]


def test_stoi_is_the_package_s(reference: Tensor, noisy: Tensor) -> None:
    pystoi = pytest.importorskip("pystoi")
    found = intrusive.stoi(noisy[:-50], reference)
    clean, heard = reference[:-50].double().numpy(), noisy[:-50].double().numpy()
    assert found["stoi"] == pystoi.stoi(clean, heard, RATE)
    # The package adds noise of 1e-16 to it, other at every call.
    extended = pystoi.stoi(clean, heard, RATE, extended=True)
    assert found["estoi"] == pytest.approx(extended, abs=1e-12)
    same = intrusive.stoi(reference, reference)
    assert list(same.values()) == pytest.approx([1, 1], abs=1e-6)
    assert found["stoi"] < 0.99


def test_stoi_does_not_hang_on_what_was_drawn_before(reference: Tensor, noisy: Tensor) -> None:
    pytest.importorskip("pystoi")
    found = set()
    for seed in range(6):
        np.random.seed(seed)
        found.add(tuple(intrusive.stoi(noisy, reference).values()))
    assert len(found) == 1
    drawn = np.random.rand()
    np.random.seed(5)
    assert drawn == np.random.rand(), "nobody else's draws are changed"


def test_stoi_refuses_what_is_too_short(reference: Tensor) -> None:
    pytest.importorskip("pystoi")
    with pytest.raises(InputError, match=r"at least 0\.4 s of speech"):
        intrusive.stoi(reference[:4_000], reference[:4_000])


def test_pesq_is_the_package_s(reference: Tensor, noisy: Tensor) -> None:
    package = pytest.importorskip("pesq")
    found = intrusive.pesq(noisy, reference)
    assert found == package.pesq(RATE, reference.numpy(), noisy.numpy(), "wb")
    assert found < 4
    assert intrusive.pesq(reference, reference) == pytest.approx(4.644, abs=1e-3)
    with pytest.raises(InputError, match="PESQ cannot rate it"):
        intrusive.pesq(reference[:1_000], reference[:1_000])


@pytest.mark.parametrize(
    ("package", "extra"), [("pesq", "pesq"), ("pystoi", "evaluate")], ids=["pesq", "pystoi"]
)
def test_a_package_that_is_missing_is_named(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    measure = {"pesq": intrusive.pesq, "pystoi": intrusive.stoi}[package]
    with pytest.raises(PluginError, match=rf"pip install 'speechlm\[{extra}\]'"):
        measure(torch.ones(1_000), torch.ones(1_000))


@settings(max_examples=30, deadline=None)
@given(st.floats(-60, 60), st.floats(0.1, 10))
def test_distortion_ratio_is_what_was_mixed_whatever_the_level(db: float, gain: float) -> None:
    draw = np.random.default_rng(3)
    clean = draw.standard_normal(2_000)
    clean -= clean.mean()
    noise = draw.standard_normal(2_000)
    noise -= noise.mean()
    noise -= (noise @ clean) / (clean @ clean) * clean
    noise *= np.sqrt(clean @ clean / (noise @ noise)) * 10 ** (-db / 20)
    found = intrusive.si_sdr(torch.tensor(gain * (clean + noise)), torch.tensor(clean))
    assert found == pytest.approx(db, abs=1e-3)


def test_time_must_agree_where_it_is_compared(reference: Tensor) -> None:
    with pytest.raises(InputError, match=r"expected .* s as in the reference, got"):
        intrusive.si_sdr(reference[: len(reference) // 2], reference)
