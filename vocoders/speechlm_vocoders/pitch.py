"""Pitch of speech, as training targets: autocorrelation and the smoothest path through its peaks.

Plain torch, batched, some milliseconds a second of speech: made to be measured anew in every
training step. For pitch as units, see the tokenizer ``prosody``.

Source:
    Boersma 1993 (autocorrelation divided by the window's own, costs of the path).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST_HZ = 60.0
HIGHEST_HZ = 500.0
NUM_CANDIDATES = 4
SILENCE = 0.02
"""Frames whose peak is below this part of the recording's are unvoiced."""
VOICED_ABOVE = 0.45
"""Autocorrelation, of at most 1, from which a frame is rather voiced."""
OCTAVE_COST = 0.02
"""What an octave downwards must gain: of a period and its double, the period is meant."""
JUMP_COST = 0.35
"""What a jump by an octave from one frame to the next costs."""
VOICING_COST = 0.14
"""What a change between voiced and unvoiced costs."""


@torch.no_grad()
def track_pitch(waves: Tensor, sample_rate: int, hop_length: int) -> tuple[Tensor, Tensor]:
    """Measure the pitch at each multiple of ``hop_length``.

    Args:
        waves: float32 [B, T].
        sample_rate: Hz.
        hop_length: Samples between two measurements.

    Returns:
        log_pitch: Natural logarithm of Hz, float32 [B, 1 + T // hop_length]; between voiced
            stretches it goes straight from one to the next, and where all is unvoiced it is 0.
        voiced: Where it was measured, bool, same shape.
    """
    pitches, strengths = _candidates(waves, sample_rate, hop_length)
    path = _best_path(pitches, strengths)
    voiced = path < NUM_CANDIDATES
    chosen = pitches.gather(2, path.clamp(max=NUM_CANDIDATES - 1)[..., None])[..., 0]
    return _bridge(chosen, voiced), voiced


def _candidates(waves: Tensor, sample_rate: int, hop_length: int) -> tuple[Tensor, Tensor]:
    """The highest peaks of each frame's autocorrelation: log pitch and strength, [B, F, N]."""
    size = 2 * round(1.5 * sample_rate / LOWEST_HZ)
    longest, shortest = int(sample_rate / LOWEST_HZ), int(sample_rate / HIGHEST_HZ)
    frames = F.pad(waves, (size // 2, size // 2)).unfold(1, size, hop_length)
    frames = frames - frames.mean(dim=2, keepdim=True)
    loud = frames.abs().amax(dim=2) > SILENCE * waves.abs().amax(dim=1, keepdim=True)
    window = torch.hann_window(size, device=waves.device)
    own = _autocorrelation(window)
    correlation = _autocorrelation(frames * window)
    # Of what the window shortens with every lag, its own autocorrelation tells how much.
    correlation = correlation / (correlation[..., :1] + 1e-9) * (own[0] / own)
    correlation = correlation[..., : longest + 2]
    left, middle, right = (correlation[..., shortest + i : longest + i] for i in (-1, 0, 1))
    # A parabola through each peak: lags between samples.
    bend = (left - 2 * middle + right).clamp(max=-1e-6)
    shift = (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
    lags = torch.arange(shortest, longest, device=waves.device) + shift
    log_pitch = torch.log(sample_rate / lags)
    strength = middle - 0.25 * (left - right) * shift
    octaves = (log_pitch - torch.tensor(LOWEST_HZ).log()) / torch.tensor(2.0).log()
    strength = torch.where(
        (middle > left) & (middle >= right) & loud[..., None],
        strength.clamp(max=1.0) + OCTAVE_COST * octaves,
        -1.0,
    )
    strengths, best = strength.topk(NUM_CANDIDATES, dim=2)
    return log_pitch.gather(2, best), strengths


def _autocorrelation(frames: Tensor) -> Tensor:
    length = frames.shape[-1]
    size = 2 ** (2 * length - 1).bit_length()
    powers = torch.fft.rfft(frames, n=size).abs().square()
    correlation: Tensor = torch.fft.irfft(powers, n=size)
    return correlation[..., :length]


def _best_path(pitches: Tensor, strengths: Tensor) -> Tensor:
    """Viterbi: the candidate of each frame, int64 [B, F]; ``NUM_CANDIDATES`` is unvoiced."""
    unvoiced = strengths.new_full((*strengths.shape[:2], 1), VOICED_ABOVE)
    gains = torch.cat([strengths, unvoiced], dim=2)
    jumps = (pitches[:, 1:, None, :] - pitches[:, :-1, :, None]).abs() / torch.tensor(2.0).log()
    # [B, F - 1, from, to]
    costs = F.pad(JUMP_COST * jumps, (0, 1, 0, 1), value=VOICING_COST)
    costs[..., -1, -1] = 0.0
    total = gains[:, 0]
    came_from = []
    for gain, cost in zip(gains[:, 1:].unbind(1), costs.unbind(1), strict=True):
        best, where = (total[:, :, None] - cost).max(dim=1)
        total = best + gain
        came_from.append(where)
    path = [total.argmax(dim=1)]
    for where in reversed(came_from):
        path.append(where.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], dim=1)


def _bridge(values: Tensor, known: Tensor) -> Tensor:
    """Keep ``values`` [B, F] where ``known``; go straight from known to known elsewhere."""
    index = torch.arange(values.shape[1], device=values.device).expand_as(values)
    before = torch.where(known, index, -1).cummax(dim=1).values
    after = torch.where(known, index, values.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    has_before, has_after = before >= 0, after < values.shape[1]
    before, after = before.clamp(min=0), after.clamp(max=values.shape[1] - 1)
    left, right = values.gather(1, before), values.gather(1, after)
    share = (index - before) / (after - before).clamp(min=1)
    between = left + (right - left) * share
    outside = torch.where(has_before, left, torch.where(has_after, right, 0.0))
    return torch.where(has_before & has_after, between, outside)
