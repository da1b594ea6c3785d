"""Rotary positions: which angle each pair of a head's dimensions turns by, at each position.

Source:
    Su et al. 2021, arXiv:2104.09864; the stretched ones as :class:`RopeScaling` says.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from speechlm.model.architecture import RopeScaling


def frequencies(dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Radians a position, of each pair of dimensions: float32 [dim / 2]."""
    plain = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        wavelengths = 2 * math.pi / plain
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        # 0 where a wave is longer than the old context: stretched; 1 where much shorter: kept.
        kept = (scaling.original_max_positions / wavelengths - low) / (high - low)
        kept = kept.clamp(0, 1)
        return (1 - kept) * plain / scaling.factor + kept * plain
    # yarn: dimensions that turn often in the old context are kept, slow ones stretched.
    first = _dimension_of(scaling.beta_fast, dim, theta, scaling.original_max_positions)
    last = _dimension_of(scaling.beta_slow, dim, theta, scaling.original_max_positions)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = (torch.arange(dim // 2).float() - first) / max(last - first, 0.001)
    stretched = ramp.clamp(0, 1)
    return plain / scaling.factor * stretched + plain * (1 - stretched)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What queries and keys are scaled by as well."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


@functools.lru_cache(maxsize=16)
def rotary_table(
    dim: int,
    theta: float,
    scaling: RopeScaling | None,
    num_positions: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for :func:`rotate`, [positions, dim] each."""
    with torch.inference_mode(False):  # a table made while serving must still serve training
        turns = torch.arange(num_positions).float()[:, None]
        angles = turns * frequencies(dim, theta, scaling)
        factor = attention_factor(scaling)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        table = torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)
        return table[0].to(device, dtype), table[1].to(device, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of dimensions that are half a head apart.

    Args:
        x: float [..., head_dim]; only the first ``cos.shape[-1]`` dimensions turn.
        cos: Broadcast over what stands before.
        sin: The same, negative in its first half.
    """
    dim = cos.shape[-1]
    if dim == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(dim // 2, -1), sin)
    turned = x[..., :dim]
    turned = torch.addcmul(turned * cos, turned.roll(dim // 2, -1), sin)
    return torch.cat([turned, x[..., dim:]], dim=-1)


def _dimension_of(turns: float, dim: int, theta: float, num_positions: int) -> float:
    """Which pair of dimensions turns ``turns`` times within ``num_positions``."""
    return dim * math.log(num_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))
