"""Root-mean-square norm, and the precision it hands on.

Source:
    Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scale each position to unit root mean square, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        # One cast here rather than one in each projection that reads it.
        return (self.weight * (wide * scale).to(x.dtype)).to(compute_dtype(x))


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of ``x`` are computed in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
