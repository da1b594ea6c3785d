"""sSIMI: do words lie near each other that people find alike?

People have judged how alike two words are; a model's answer is how far apart the recordings lie.
The figure is Spearman's correlation of the two, in percent, turned so that more is better.

Source:
    Nguyen et al. 2020 (ZeroSpeech 2021), arXiv:2011.11588, section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

POOLINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda frames: frames.mean(dim=0),
    "max": lambda frames: frames.amax(dim=0),
    "min": lambda frames: frames.amin(dim=0),
    "sum": lambda frames: frames.sum(dim=0),
    "last": lambda frames: frames[-1],
}
"""What makes one vector [D] of frames [F, D]; those of ZeroSpeech."""


def token_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The mean euclidean distance of all recordings of one word to all of another, [D] each."""
    return float(torch.cdist(torch.stack(list(first)), torch.stack(list(second))).mean())


def ranks(values: Floats) -> Floats:
    """The place of each value in order, [N], equal ones at the mean of their places."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    places: Floats = (last - (counts - 1) / 2)[which]
    return places


def spearman(first: Floats, second: Floats) -> float:
    """The correlation of ranks of [N] with [N], in percent; NaN where all of one are equal."""
    one, other = ranks(first), ranks(second)
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float(100 * (one * other).sum() / scale) if scale > 0 else float("nan")
