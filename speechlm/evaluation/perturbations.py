"""Changes to a recording that leave what is said as it is, so that units should stay too.

Source:
    Gat et al. 2022, "Augmentation invariant discrete representation for generative spoken
    language modeling", arXiv:2209.15483, which has the same four kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torchaudio.functional
from torch import Tensor

DECAY_S = 0.05
"""After which a room's tail is 8.7 dB (one neper) lower: about 0.35 s to fall by 60 dB."""
ROOM_S = 0.4


def add_noise(wave: Tensor, sample_rate: int, seed: int, *, snr_db: float) -> Tensor:
    """Add white noise, float32 [T] to [T], as much weaker than the whole as ``snr_db`` says."""
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(seed))
    level = wave.square().mean().sqrt() * 10 ** (-snr_db / 20)
    return wave + level * noise


def stretch(wave: Tensor, sample_rate: int, seed: int, *, factor: float) -> Tensor:
    """Make it ``factor`` times as long at the same pitch, by a phase vocoder; [T] to [T']."""
    size, hop = 512, 128
    window = torch.hann_window(size)
    spectrum = torch.stft(wave, size, hop, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * hop, spectrum.shape[0])[:, None]
    stretched = torchaudio.functional.phase_vocoder(spectrum, 1 / factor, advance)
    length = round(len(wave) * factor)
    longer: Tensor = torch.istft(stretched, size, hop, window=window, length=length)
    return longer


def raise_pitch(wave: Tensor, sample_rate: int, seed: int, *, up: int, down: int) -> Tensor:
    """Raise pitch and formants by ``up / down`` at the same length, [T] to [T] or a sample off."""
    longer = stretch(wave, sample_rate, seed, factor=up / down)
    shorter: Tensor = torchaudio.functional.resample(longer, up, down)
    return shorter


def reverberate(wave: Tensor, sample_rate: int, seed: int) -> Tensor:
    """Hear it in a room: a tail of noise as strong as the direct sound, [T] to [T]."""
    time_s = torch.arange(round(ROOM_S * sample_rate)) / sample_rate
    noise = torch.randn(len(time_s), generator=torch.Generator().manual_seed(seed))
    tail = noise * torch.exp(-time_s / DECAY_S)
    room = tail / tail.norm()
    room[0] = 1.0
    heard = torchaudio.functional.fftconvolve(wave, room)[: len(wave)]
    as_loud: Tensor = heard * (wave.norm() / heard.norm().clamp(min=1e-9))
    return as_loud


PERTURBATIONS: Mapping[str, Callable[[Tensor, int, int], Tensor]] = {
    "noise-20db": partial(add_noise, snr_db=20.0),
    "noise-10db": partial(add_noise, snr_db=10.0),
    "noise-0db": partial(add_noise, snr_db=0.0),
    "stretch-0.9": partial(stretch, factor=0.9),
    "stretch-1.1": partial(stretch, factor=1.1),
    "pitch-2-semitones": partial(raise_pitch, up=9, down=8),
    "reverberation": reverberate,
}
"""What takes a wave float32 [T], its rate in Hz and a seed, by name."""
