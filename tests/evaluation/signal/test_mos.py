from __future__ import annotations

from importlib import metadata

import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import AudioError, CheckpointError, PluginError
from speechlm.evaluation.signal import mos
from speechlm.evaluation.signal.mos import DNSMOS, PLCMOS, SAMPLE_RATE, Rating, dnsmos, plcmos

pytest.importorskip("onnxruntime")
try:
    metadata.version("speechmos")
except metadata.PackageNotFoundError:  # pragma: no cover
    pytest.skip("speechmos is not installed", allow_module_level=True)

# What speechmos 0.0.1.1 itself says (with librosa 0.11, and numpy's legacy seed 0 for PLCMOS).
OF_THE_PACKAGE = {
    "auth-incorrect": (3.410401, 3.872186, 3.040330, 3.957099, 4.792288),
    "two": (3.328039, 3.840155, 2.950064, 3.529799, 4.273432),
}


def wave_of(name: str) -> Tensor:
    return load_audio(human_clips()[name].path, SAMPLE_RATE)


@pytest.mark.parametrize("name", OF_THE_PACKAGE)
def test_a_recording_is_rated_as_the_package_rates_it(name: str) -> None:
    rating = dnsmos().rate(wave_of(name), SAMPLE_RATE)
    found = [rating.sig, rating.bak, rating.ovrl, rating.p808]
    found.append(plcmos().rate(wave_of(name), SAMPLE_RATE))
    assert found == pytest.approx(OF_THE_PACKAGE[name], abs=1e-3)


def test_noise_and_gaps_lower_the_ratings() -> None:
    wave = wave_of("two")
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(1))
    clean, noisy = (dnsmos().rate(each, SAMPLE_RATE) for each in (wave, wave + 0.05 * noise))
    for name in ("bak", "ovrl", "p808"):
        assert getattr(noisy, name) < getattr(clean, name) - 0.3, name
    torn = wave * (torch.arange(len(wave)) // 640 % 4 > 0)
    assert plcmos().rate(torn, SAMPLE_RATE) < plcmos().rate(wave, SAMPLE_RATE) - 0.5


def test_digital_silence_in_a_recording_is_rated() -> None:
    wave = torch.cat([wave_of("two"), torch.zeros(4_000)])
    assert 1 < plcmos().rate(wave, SAMPLE_RATE) < 5


def test_some_segments_are_left_out_as_the_package_leaves_them_out() -> None:
    heard = []

    class Counting(DNSMOS):
        def _segment(self, segment: Tensor) -> list[float]:
            heard.append(len(segment))
            return [1.0, 2.0, 3.0, 4.0]

    wave = torch.sin(torch.arange(25 * SAMPLE_RATE) / 9)
    assert Counting().rate(wave, SAMPLE_RATE) == Rating(sig=1.0, bak=2.0, ovrl=3.0, p808=4.0)
    # Of 16 whole seconds, those whose end (place + 9.01) * 16000 is not rounded down.
    ends = [int((place + 9.01) * 16_000) - place * 16_000 for place in range(16)]
    assert heard == [144_160] * ends.count(144_160)
    assert len(heard) < 16


@pytest.mark.parametrize("scorer", [dnsmos, plcmos])
def test_silence_is_refused(scorer: type[PLCMOS]) -> None:
    with pytest.raises(AudioError, match="silent"):
        scorer().rate(torch.zeros(16_000), SAMPLE_RATE)


def test_a_package_that_is_missing_or_empty_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mos.metadata, "files", lambda name: [])
    with pytest.raises(CheckpointError, match=r"holds no plcmos_models/plcmos_v2\.onnx"):
        PLCMOS()

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mos.metadata, "files", missing)
    with pytest.raises(PluginError, match="pip install --no-deps speechmos onnxruntime"):
        DNSMOS()
