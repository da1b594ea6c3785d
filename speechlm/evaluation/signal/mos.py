"""DNSMOS and PLCMOS: how a listener would rate speech, 1 to 5, as networks of Microsoft's guess.

DNSMOS hears 9 s at 16 kHz and says how good the speech sounds (``sig``), how little the background
disturbs (``bak``), and both (``ovrl``), after ITU-T P.835; a second network rates as in P.808.
PLCMOS hears the whole and rates what was patched up after lost packets, so gaps and glitches.
They were taught by noisy calls: they hear noise and artefacts, not whether the right thing is said.

The networks come inside a package, ``speechmos``; nothing of it is imported, since that would ask
for librosa: ``pip install --no-deps speechmos onnxruntime``.

Sources:
    Reddy et al. 2022 (DNSMOS P.835), arXiv:2110.01763; Reddy et al. 2021, arXiv:2010.15258;
    Diener et al. 2023 (PLCMOS), arXiv:2305.15127.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.audio import prepare
from speechlm.errors import CheckpointError, PluginError

SAMPLE_RATE = 16_000
PACKAGE = "speechmos"
SEGMENT_S = 9.01
"""What DNSMOS hears at once, s; a shorter recording is repeated."""
SEGMENT = int(SEGMENT_S * SAMPLE_RATE)
HOP = SAMPLE_RATE
_MELS, _FFT, _MEL_HOP = 120, 321, 160
# The polynomials that bring what the first network says to the scale of listeners.
_CURVES = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
_PLC_WINDOW = 512
_PLC_RATERS = 15
"""Listeners that PLCMOS is asked to be, each a draw; a figure is their mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating:
    """Of one recording, each about 1 (bad) to 5 (excellent)."""

    sig: float
    bak: float
    ovrl: float
    p808: float


class DNSMOS:
    """Rates recordings; make one and keep it."""

    def __init__(self) -> None:
        """Open the networks.

        Raises:
            PluginError: onnxruntime or the package that carries them is not installed.
            CheckpointError: They cannot be read.
        """
        self._p835 = _open("dnsmos_models", "sig_bak_ovr.onnx")
        self._p808 = _open("dnsmos_models", "model_v8.onnx")

    def rate(self, wave: Tensor, sample_rate: int) -> Rating:
        """Rate a recording, the mean over its segments, a second apart.

        Args:
            wave: float [T] or [channels, T].
            sample_rate: Its rate, Hz.

        Raises:
            AudioError: Too short, silent, NaN, or of another shape.
        """
        ready = prepare(wave, sample_rate, SAMPLE_RATE)
        while len(ready) < SEGMENT:
            ready = torch.cat([ready, ready])
        # Those that DNSMOS' own code takes: one for each whole second beyond the first nine, but
        # for some whose end, in floating point, falls a sample short.
        count = int(len(ready) // SAMPLE_RATE - SEGMENT_S) + 1
        pieces = (ready[place * HOP : int((place + SEGMENT_S) * HOP)] for place in range(count))
        whole = [piece.contiguous() for piece in pieces if len(piece) == SEGMENT]
        found = torch.tensor([self._segment(each) for each in whole]).mean(dim=0)
        sig, bak, ovrl, p808 = found.tolist()
        return Rating(sig=sig, bak=bak, ovrl=ovrl, p808=p808)

    def _segment(self, segment: Tensor) -> list[float]:
        (raw,) = self._p835.run(None, {"input_1": segment[None].numpy()})[0].tolist()
        ratings = [
            square * value**2 + linear * value + constant
            for value, (square, linear, constant) in zip(raw, _CURVES.values(), strict=True)
        ]
        mels = _mels(segment[:-_MEL_HOP])
        ((p808,),) = self._p808.run(None, {"input_1": mels[None].numpy()})[0].tolist()
        return [*ratings, p808]


class PLCMOS:
    """Version 2, of 2023; make one and keep it."""

    def __init__(self) -> None:
        """Open the network; raises what :class:`DNSMOS` does."""
        self._network = _open("plcmos_models", "plcmos_v2.onnx")
        # The package draws other listeners at every call; these are always the same ones.
        draws = np.random.RandomState(0).normal(size=(_PLC_RATERS, 1, 64))
        self._raters = draws.astype(np.float32)

    def rate(self, wave: Tensor, sample_rate: int) -> float:
        """Rate a recording as a whole, about 1 (bad) to 5 (excellent).

        Args:
            wave: float [T] or [channels, T].
            sample_rate: Its rate, Hz.

        Raises:
            AudioError: Too short, silent, NaN, or of another shape.
        """
        spectra = _log_power(prepare(wave, sample_rate, SAMPLE_RATE))[None, None].numpy()
        heard = {"degraded_audio": spectra}
        found = [self._network.run(None, {**heard, "rater_embed": one})[0] for one in self._raters]
        return float(np.mean(found))


@lru_cache(1)
def dnsmos() -> DNSMOS:
    """The one of this process."""
    return DNSMOS()


@lru_cache(1)
def plcmos() -> PLCMOS:
    """The one of this process."""
    return PLCMOS()


def _mels(wave: Tensor) -> Tensor:
    """What P.808 reads, float32 [frames, 120]: decibels below the loudest, scaled."""
    spectra = torch.stft(
        wave,
        n_fft=_FFT,
        hop_length=_MEL_HOP,
        window=torch.hann_window(_FFT),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = (spectra.abs().square().T @ _filters()).clamp(min=1e-10)
    decibels = 10 * (power / power.max()).log10()
    return (decibels.clamp(min=-80.0) + 40) / 40


def _log_power(wave: Tensor) -> Tensor:
    """What PLCMOS reads, float32 [frames, 257]: natural logarithm of the power, by 20."""
    size, hop = _PLC_WINDOW, _PLC_WINDOW // 2
    frames = -(-(len(wave) + hop) // hop)
    padded = F.pad(wave.double(), (hop, (frames - 1) * hop + size - hop - len(wave)))
    window = torch.hamming_window(size, dtype=torch.float64)
    power = torch.fft.rfft(padded.unfold(0, size, hop) * window).abs().square()
    # Where there is nothing at all, 120 dB below the least that there is.
    least = power[power > 0].min().log() - 12 * torch.tensor(10.0, dtype=torch.float64).log()
    return (torch.where(power > 0, power.log(), least) / 20).float()


@lru_cache(1)
def _filters() -> Tensor:
    """Triangles on Slaney's mel scale, each of area 1, float32 [161, 120].

    Not torchaudio's: the last bin of an odd transform lies below half the rate.
    """
    edges = _mel_to_hz(
        torch.linspace(0, _hz_to_mel(SAMPLE_RATE / 2), _MELS + 2, dtype=torch.float64)
    )
    bins = torch.arange(_FFT // 2 + 1).double() * SAMPLE_RATE / _FFT
    left, middle, right = (edges[i : i + _MELS] for i in range(3))
    rising = (bins[:, None] - left) / (middle - left)
    falling = (right - bins[:, None]) / (right - middle)
    triangles = torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)
    return triangles.float()


_LINEAR_HZ, _LINEAR_MELS = 1000.0, 15.0
"""Up to here Slaney's scale is linear; then 27 mels are a factor of 6.4."""


def _hz_to_mel(hertz: float) -> float:
    return _LINEAR_MELS + 27 * math.log(hertz / _LINEAR_HZ) / math.log(6.4)


def _mel_to_hz(mels: Tensor) -> Tensor:
    above = _LINEAR_HZ * torch.exp((mels - _LINEAR_MELS) * math.log(6.4) / 27)
    return torch.where(mels < _LINEAR_MELS, mels * _LINEAR_HZ / _LINEAR_MELS, above)


def _open(folder: str, name: str) -> Any:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        files = metadata.files(PACKAGE) or []
    except (ImportError, metadata.PackageNotFoundError):
        raise PluginError(
            "DNSMOS and PLCMOS need their networks and what runs them: pip install --no-deps "
            f"{PACKAGE} onnxruntime"
        ) from None
    paths = [file.locate() for file in files if file.parts[-2:] == (folder, name)]
    if not paths:
        raise CheckpointError(f"the package {PACKAGE} holds no {folder}/{name}; install it again")
    settings = onnxruntime.SessionOptions()
    # One, as every worker has: sums in another order would round otherwise.
    settings.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(paths[0]), settings)
    except Exception as error:  # whatever onnxruntime makes of a broken file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{paths[0]}: expected a network of {PACKAGE} ({reason})") from error
