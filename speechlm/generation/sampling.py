"""Choosing the next id, so that the choice does not depend on who else is in the batch.

The same sequence gets logits that differ in the last bits when it is computed in another
batch. A choice is therefore *certain* only when no error of that size could turn it over;
an uncertain one is decided on logits computed for that sequence alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechlm.config import SamplingConfig

TOLERANCE = 1e-4
"""How far apart two logits must be to be told apart for certain; float32's rounding stays far
below."""
BFLOAT16_TOLERANCE = 0.05
"""The same for logits computed in bfloat16, whose rounding mostly stays below."""


def seeded_noise(generator: torch.Generator, size: int) -> Tensor:
    """Standard Gumbel noise, float32 [size], drawn on the CPU for every device alike."""
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12))).float()


def choose(
    logits: Tensor, sampling: SamplingConfig, noise: Tensor | None, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor]:
    """Choose an id for each sequence.

    Args:
        logits: float [B, V]; what must not be chosen is -inf.
        sampling: Temperature 0 takes the most probable and needs no noise.
        noise: Gumbel noise, float [B, V]: its argmax with the logits is a fair draw.
        tolerance: How far two logits may be off.

    Returns:
        ids: int64 [B].
        certain: Whether the choice is safe from rounding, bool [B].
    """
    if sampling.temperature == 0 or noise is None:
        return _argmax(logits, tolerance)
    scaled = logits / sampling.temperature
    tolerance = tolerance / sampling.temperature
    kept, certain = _kept(scaled, sampling, tolerance)
    ids, clear = _argmax(scaled.masked_fill(~kept, -torch.inf) + noise, tolerance)
    return ids, certain & clear


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make ids less probable that came already.

    Args:
        logits: float [B, V].
        seen: Which came, bool [B, V].
        penalty: Positive logits are divided by it, negative ones multiplied; float [B, 1].

    Source:
        CTRL: Keskar et al. 2019, arXiv:1909.05858.
    """
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def _argmax(scores: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    best = scores.topk(min(2, scores.shape[1]), dim=1)
    if best.values.shape[1] == 1:
        return best.indices[:, 0], torch.ones_like(best.indices[:, 0], dtype=torch.bool)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] > tolerance


def _kept(scores: Tensor, sampling: SamplingConfig, tolerance: float) -> tuple[Tensor, Tensor]:
    """Which ids may be drawn, bool [B, V], and whether rounding could change that, bool [B].

    Sources:
        top-p: Holtzman et al. 2020, arXiv:1904.09751. min-p: Nguyen et al. 2024,
        arXiv:2407.01082.
    """
    certain = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    if sampling.top_p == 1 and sampling.min_p == 0 and not 0 < sampling.top_k < scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool), certain
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if 0 < sampling.top_k < ordered.shape[1]:
        kept[:, sampling.top_k :] = False
    if sampling.top_p < 1:
        # An id stays when those before it hold less than top_p, so the first always does.
        # Shares are sums of many small terms, whose rounding is smaller than a logit's.
        shares = ordered.masked_fill(~kept, -torch.inf).softmax(dim=1)
        before = shares.cumsum(dim=1) - shares
        certain &= ((before - sampling.top_p).abs() > tolerance / 10).all(dim=1)
        kept &= before < sampling.top_p
    if sampling.min_p > 0:
        kept &= ordered >= ordered[:, :1] + math.log(sampling.min_p)
    # The last that stays and the first that goes must be clearly apart, or they might swap.
    count = kept.sum(dim=1, keepdim=True)
    last = ordered.gather(1, count - 1)
    first_out = ordered.gather(1, count.clamp_max(ordered.shape[1] - 1))
    gap = (last - first_out).squeeze(1)
    if sampling.min_p > 0:
        edge = ordered[:, :1] + math.log(sampling.min_p)
        certain &= ((ordered - edge).abs() > tolerance).all(dim=1)
    everything = count.squeeze(1) == ordered.shape[1]
    certain &= everything | (gap > tolerance)
    return torch.zeros_like(kept).scatter(1, order, kept), certain
