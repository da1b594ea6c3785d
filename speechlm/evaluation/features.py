"""Plain features of speech, which nobody had to learn: the baseline of what units tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torchaudio.functional
from torch import Tensor
from torchaudio.compliance import kaldi

from speechlm.errors import InputError
from speechlm_tokenizers.kmeans import assign, fit_kmeans

SAMPLE_RATE = 16_000
"""Of the waves that features are made of, Hz."""
FRAME_RATE = 100.0
"""Frames a second, Hz; each sees 25 ms around its middle."""
NUM_CEPSTRA = 13
NUM_MELS = 80
FIT_FRAMES = 200_000
"""Most frames that k-means is fitted on."""
FIT_PASSES = 10
FULL_SCALE = 32_768.0
"""Kaldi's waves are as loud as 16-bit samples."""


def plain_features(wave: Tensor, name: str) -> Tensor:
    """Features of a recording, each with mean 0 and variance 1 over it (CMVN).

    Args:
        wave: float32 [T] at :data:`SAMPLE_RATE`.
        name: ``mfcc``, 13 cepstra with their first and second differences; ``logmel``, 80
            log-mel energies. Both as Kaldi makes them.

    Returns:
        float32 [round(T / 160), 39 or 80] at :data:`FRAME_RATE`.

    Raises:
        InputError: No such features.
    """
    if name not in MAKERS:
        raise InputError(f"expected features {' or '.join(MAKERS)}, got {name!r}")
    frames = MAKERS[name](wave[None] * FULL_SCALE)
    spread = frames.std(dim=0, correction=0).clamp(min=1e-5)
    return (frames - frames.mean(dim=0)) / spread


def kmeans_units(features: Mapping[str, Tensor], num_units: int, seed: int) -> dict[str, Tensor]:
    """The units that k-means makes of features, fitted on the same recordings.

    Args:
        features: Of each recording, float32 [F, D].
        num_units: Centroids; fewer where there are fewer frames.
        seed: Decides the frames that are fitted on, and the first centroids.

    Returns:
        The unit of each frame, int64 [F], of each recording.
    """
    frames = torch.cat(list(features.values()))
    generator = torch.Generator().manual_seed(seed)
    chosen = frames[torch.randperm(len(frames), generator=generator)[:FIT_FRAMES]]
    centroids = fit_kmeans(chosen, min(num_units, len(chosen)), FIT_PASSES, generator)
    return {name: assign(part, centroids) for name, part in features.items()}


def _mfcc(wave: Tensor) -> Tensor:
    cepstra = kaldi.mfcc(wave, num_ceps=NUM_CEPSTRA, snip_edges=False).T
    first = torchaudio.functional.compute_deltas(cepstra)
    second = torchaudio.functional.compute_deltas(first)
    return torch.cat([cepstra, first, second]).T


def _logmel(wave: Tensor) -> Tensor:
    frames: Tensor = kaldi.fbank(wave, num_mel_bins=NUM_MELS, snip_edges=False)
    return frames


MAKERS: Mapping[str, Callable[[Tensor], Tensor]] = {"mfcc": _mfcc, "logmel": _logmel}
