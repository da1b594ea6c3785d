"""From an encoder's frames to units: the nearest centroid, or a small trained network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.errors import CheckpointError
from speechlm_tokenizers.nearest import NearestCentroid

QuantizerKind = Literal["k-means", "feed-forward"]
NO_UNIT = -1
"""Stands for a frame that says nothing: it takes the unit of the frame before it."""


class CentroidQuantizer:
    """Units are the numbers of the nearest centroids."""

    kind: QuantizerKind = "k-means"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Make one of ``centroids``, float32 [V, D]."""
        self.tensors = dict(tensors)
        self.unit_features = self.tensors["centroids"]
        self.num_units, self.dim = self.unit_features.shape
        self._nearest = NearestCentroid(self.unit_features)

    def __call__(self, features: Tensor) -> Tensor:
        """Units of float32 [F, D], int64 [F]."""
        return self._nearest(features)

    def unsure(self, features: Tensor, error: float) -> Tensor:
        """Which units could be others if frames were wrong by ``error`` of their norm, bool [F]."""
        errors: Tensor = error * features.norm(dim=1)
        return self._nearest.margins(features) <= 2 * errors

    def to(self, device: torch.device) -> CentroidQuantizer:
        return CentroidQuantizer({name: t.to(device) for name, t in self.tensors.items()})


class FeedForwardQuantizer:
    """Units are the classes of a small network that was trained to hear past noise and tempo.

    It has one class more than units; that one says nothing, as the blank of CTC.

    Source:
        Gat et al. 2023, arXiv:2209.15483; Spirit LM's quantizer, arXiv:2402.05755.
    """

    kind: QuantizerKind = "feed-forward"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Make one of ``layers.N.weight`` and ``layers.N.bias``, in order, N from 0."""
        self.tensors = dict(tensors)
        count = sum(name.endswith(".weight") for name in tensors)
        self._layers = [
            (tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in range(count)
        ]
        last = self._layers[-1][0]
        self.num_units, self.dim = len(last) - 1, self._layers[0][0].shape[1]
        self.unit_features = last[:-1]

    def __call__(self, features: Tensor) -> Tensor:
        """Units of float32 [F, D], int64 [F]; ``NO_UNIT`` where a frame says nothing."""
        scores = self._scores(features)
        codes = scores.argmax(dim=1)
        return torch.where(codes == self.num_units, NO_UNIT, codes)

    def unsure(self, features: Tensor, error: float) -> Tensor:
        """Which units could be others if frames were wrong by ``error`` of their norm, bool [F]."""
        best = self._scores(features).topk(2, dim=1).values
        # By as much as the layers can enlarge a difference.
        gain = torch.stack([torch.linalg.matrix_norm(w, ord=2) for w, _ in self._layers]).prod()
        errors: Tensor = error * gain * features.norm(dim=1)
        return best[:, 0] - best[:, 1] <= 2 * errors

    def _scores(self, features: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(self._layers):
            if number:
                features = F.leaky_relu(features)
            features = F.linear(features, weight, bias)
        return features

    def to(self, device: torch.device) -> FeedForwardQuantizer:
        return FeedForwardQuantizer({name: t.to(device) for name, t in self.tensors.items()})


Quantizer = CentroidQuantizer | FeedForwardQuantizer
QUANTIZERS: Mapping[QuantizerKind, type[CentroidQuantizer] | type[FeedForwardQuantizer]] = {
    "k-means": CentroidQuantizer,
    "feed-forward": FeedForwardQuantizer,
}


def feed_forward_tensors(values: Any, source: object) -> dict[str, Tensor] | None:
    """The layers of a feed-forward quantizer, if that is what a file holds.

    Args:
        values: What was read: ``model_weight`` by the names of an ``nn.Sequential``.
        source: What to call the file in an error.

    Raises:
        CheckpointError: It is one, of a shape that cannot be.
    """
    if not isinstance(values, Mapping) or "model_weight" not in values:
        return None
    weights = values["model_weight"]
    numbers = sorted({int(found[1]) for n in weights if (found := re.fullmatch(r"(\d+)\.\w+", n))})
    try:
        tensors = {
            f"layers.{index}.{kind}": weights[f"{number}.{kind}"].float().contiguous()
            for index, number in enumerate(numbers)
            for kind in ("weight", "bias")
        }
        for index in range(1, len(numbers)):
            inner = len(tensors[f"layers.{index - 1}.bias"])
            if tensors[f"layers.{index}.weight"].shape[1] != inner:
                raise KeyError(f"{numbers[index]}.weight of {inner} inputs")
    except KeyError as error:
        raise CheckpointError(f"{source} lacks {error}; download it again") from error
    return tensors


def fill_gaps(codes: Tensor, before: int) -> Tensor:
    """Give frames that say nothing the unit of the last frame that did.

    Args:
        codes: int64 [F], ``NO_UNIT`` where a frame says nothing.
        before: The unit of the frame before these; of the first, where there is none.

    Returns:
        int64 [F].
    """
    said = codes != NO_UNIT
    places = torch.where(said, torch.arange(1, len(codes) + 1), 0).cummax(dim=0).values
    return torch.cat([torch.tensor([before]), codes])[places]
