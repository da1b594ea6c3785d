"""k-means over frames of features: seeded, in blocks, so that memory stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 16_384
"""Frames compared with all centroids at once."""


def assign(features: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid of each row.

    Args:
        features: float [N, D].
        centroids: float [V, D], of the same dtype.

    Returns:
        int64 [N]; of equally near centroids the first.
    """
    norms = centroids.square().sum(dim=1)
    blocks = [
        torch.addmm(norms, block, centroids.T, alpha=-2).argmin(dim=1)
        for block in torch.split(features, BLOCK)
    ]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.int64)


def fit_kmeans(
    features: Tensor, num_units: int, iterations: int, generator: torch.Generator
) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds; an empty cluster restarts on a far frame.

    Args:
        features: float32 [N, D], N >= ``num_units``.
        num_units: Centroids.
        iterations: Passes over all features.
        generator: Decides seeds and restarts.

    Returns:
        float32 [num_units, D].

    Source:
        Arthur and Vassilvitskii 2007, k-means++.
    """
    centroids = _plus_plus(features, num_units, generator)
    for _ in range(iterations):
        codes = assign(features, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, codes, features)
        counts = torch.bincount(codes, minlength=num_units)
        empty = counts == 0
        centroids = sums / counts.clamp(min=1)[:, None]
        if empty.any():
            distance = (features - centroids[codes]).square().sum(dim=1)
            far = torch.multinomial(distance + 1e-12, int(empty.sum()), generator=generator)
            centroids[empty] = features[far]
    return centroids


def _plus_plus(features: Tensor, num_units: int, generator: torch.Generator) -> Tensor:
    """Seeds, each drawn with a probability that grows with its distance to those before.

    On a sample: with tens of frames a centroid the seeds are as good as on all of them.
    """
    most = 32 * num_units
    if len(features) > most:
        features = features[torch.randperm(len(features), generator=generator)[:most]]
    first = int(torch.randint(len(features), (), generator=generator))
    chosen = [first]
    distance = (features - features[first]).square().sum(dim=1)
    for _ in range(num_units - 1):
        # Duplicated frames can leave no distance at all; then any frame will do.
        index = int(torch.multinomial(distance + 1e-12, 1, generator=generator))
        chosen.append(index)
        distance = torch.minimum(distance, (features - features[index]).square().sum(dim=1))
    return features[torch.tensor(chosen)]
