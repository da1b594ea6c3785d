"""The nearest of many centroids: exact, and faster than a product of all with all.

On a CPU with 8-bit dot products all scores are first computed from features and centroids
rounded to 8 bits, four times as fast as in float32. What is rounded is dithered, so the errors
are random whatever the data, and a bound holds for them. Centroids that are behind the best by
more than the bound are out; most frames have one left, and for the others the distances to those
few are computed in full. Elsewhere a float32 product takes the place of the 8-bit one.

Source:
    Subtractive dither: Schuchman 1964, "Dither signals and their effect on quantization noise".
    The bound is the tail of a sum of uniform, hence sub-Gaussian, variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 2048
"""Frames compared with all centroids at once."""
PAIRS = 256
"""Frames and centroids whose distances are computed at once: as much as a cache holds."""
DEVIATIONS = 6.0
"""Standard deviations of rounding that a score may be wrong by. Beyond them is one pair in 3e7 at
worst, if all errors of two centroids conspire; where they do not, these are 8, and 6e-16."""
FLOAT_ERROR = 1e-5
"""Share of the product of two norms that a product in float32 may be wrong by."""
LEAST_DIM = 16
"""Fewer features than these are not worth rounding; of one alone torch's product is wrong."""
LEVELS = 126.0
"""What the largest value becomes in 8 bits; one level is left for the dither."""

Scores = tuple[Tensor, Callable[[Tensor], Tensor]]
"""What grows as distance falls, float32 [n, V]; and by how much the nearest centroid may be
behind the one of the best score, float32 [n], given which that is, int64 [n]."""


class NearestCentroid:
    """Assigns float32 features to fixed centroids.

    The result is that of distances in float64, so it hangs neither on the other frames nor on
    the processor; of equally near centroids it is the first.
    """

    def __init__(self, centroids: Tensor) -> None:
        """Prepare for centroids float32 [V, D], on the device of the features."""
        self.centroids = centroids.contiguous()
        # Whatever all have in common says nothing, and would only be rounded.
        self._mean = centroids.mean(dim=0)
        centred = centroids - self._mean
        wide = centroids.shape[1] >= LEAST_DIM
        if wide and centroids.device.type == "cpu" and _has_int8_products():
            self._scores: Callable[[Tensor], Scores] = _RoundedScores(centred, self._mean.norm())
        else:
            self._scores = _FloatScores(centred, self._mean.norm())

    def __call__(self, features: Tensor) -> Tensor:
        """Nearest centroid of each row of float32 [N, D], int64 [N]."""
        blocks = [self._block(block) for block in torch.split(features, BLOCK)]
        return torch.cat(blocks) if blocks else features.new_zeros(0, dtype=torch.int64)

    def margins(self, features: Tensor) -> Tensor:
        """How much further the second nearest centroid is than the nearest, float32 [N].

        No change of a frame by less than half of it can change its unit.
        """
        distances = torch.cdist(features, self.centroids)
        nearest: Tensor = distances.topk(2, dim=1, largest=False).values
        return nearest[:, 1] - nearest[:, 0]

    def _block(self, features: Tensor) -> Tensor:
        scores, slack = self._scores(features - self._mean)
        best, codes = scores.max(dim=1)
        least = best - slack(codes)
        scores.scatter_(1, codes[:, None], -torch.inf)
        rows = (scores.amax(dim=1) >= least).nonzero()[:, 0]
        if len(rows):
            rivals = scores[rows] >= least[rows, None]
            rivals.scatter_(1, codes[rows, None], True)
            codes[rows] = self._settle(features, rows, rivals)
        return codes

    def _settle(self, features: Tensor, rows: Tensor, rivals: Tensor) -> Tensor:
        """The nearest of each row's rivals.

        Args:
            features: float32 [n, D].
            rows: Those in question, int64 [r].
            rivals: The centroids that can be nearest, bool [r, V], two a row at least.

        Returns:
            int64 [r].
        """
        row, code = rivals.nonzero().unbind(dim=1)
        for dtype, tolerance in ((torch.float32, FLOAT_ERROR), (torch.float64, 0.0)):
            distances = self._distances(features, rows[row], code, dtype)
            least = distances.new_full((len(rows),), torch.inf)
            least.scatter_reduce_(0, row, distances, "amin")
            near = distances <= least[row] * (1 + tolerance)
            row, code = row[near], code[near]
            if len(row) == len(rows):
                break
        first = code.new_full((len(rows),), len(self.centroids))
        return first.scatter_reduce_(0, row, code, "amin")

    def _distances(
        self, features: Tensor, rows: Tensor, codes: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Squared distances of pairs of rows and centroids, [p]."""
        found = []
        for some_rows, some_codes in zip(
            torch.split(rows, PAIRS), torch.split(codes, PAIRS), strict=True
        ):
            frames = features.index_select(0, some_rows).to(dtype)
            frames -= self.centroids.index_select(0, some_codes)
            found.append(frames.square_().sum(dim=1))
        return torch.cat(found)


class _FloatScores:
    """Scores by a product in float32, or in what torch is told to take for that."""

    def __init__(self, centred: Tensor, offset: Tensor) -> None:
        self._columns = centred.T.contiguous()
        self._halves = centred.square().sum(dim=1) / 2
        self._largest = centred.norm(dim=1).max()
        self._offset = offset

    def __call__(self, centred: Tensor) -> Scores:
        scores = torch.addmm(-self._halves, centred, self._columns)
        exact = torch.get_float32_matmul_precision() == "highest"
        norms = centred.norm(dim=1) + self._largest + 0.1 * self._offset
        slack = 2 * (FLOAT_ERROR if exact else 2**-7) * self._largest * norms
        return scores, lambda codes: slack


class _RoundedScores:
    """Scores by a product of features and centroids that are both rounded to 8 bits."""

    def __init__(self, centred: Tensor, offset: Tensor) -> None:
        dim = centred.shape[1]
        dither = torch.rand(2, dim, generator=torch.Generator().manual_seed(0)) - 0.5
        largest = centred.abs().max().clamp(min=1e-20)
        self._scale = LEVELS / largest
        self._least = float(largest) * 1e-3
        # This dither moves all scores of a frame alike: nothing has to undo it.
        rounded = (centred * self._scale + dither[0]).round_()
        self._columns = rounded.to(torch.int8).T
        self._dither = dither[1]
        self._halves = torch.stack([centred.square().sum(dim=1) / 2, rounded @ dither[1]])
        """What is taken from a score, by its scale and as it is, float32 [2, V]."""
        spans = [torch.cdist(block, centred).amax(dim=1) for block in torch.split(centred, BLOCK)]
        self._spans = 1.01 * torch.cat(spans) * self._scale
        """How far the furthest other centroid is, of each."""
        self._rounded_off = 0.5 * dim**0.5
        self._offset = offset

    def __call__(self, centred: Tensor) -> Scores:
        """Overwrites ``centred``, float32 [n, D]."""
        # Not by way of abs(), which would fill as much memory again.
        largest = torch.maximum(
            centred.amax(dim=1, keepdim=True), -centred.amin(dim=1, keepdim=True)
        )
        # A frame amid all centroids needs no finer levels than they have.
        scale = LEVELS / largest.clamp_(min=self._least)
        rounded = centred.mul_(scale).add_(self._dither).round_()
        scores = torch._int_mm(rounded.to(torch.int8), self._columns).float()
        terms = torch.cat([scale * self._scale, torch.ones_like(scale)], dim=1)
        scores.addmm_(terms, self._halves, alpha=-1)
        norms = torch.linalg.vector_norm(rounded, dim=1) + self._rounded_off
        offset = scale[:, 0] * self._offset

        def slack(codes: Tensor) -> Tensor:
            # An error is uniform over one level, of variance 1/12. Those of two centroids may
            # be equal but for the sign.
            spans = self._spans[codes]
            deviation: Tensor = ((spans.square() + 4 * norms.square()) / 12).sqrt_()
            largest: Tensor = terms[:, 0] * self._halves[0].max() + (norms + offset) * spans
            return DEVIATIONS * deviation + 1e-6 * largest

        return scores, slack


@functools.lru_cache(maxsize=1)
def _has_int8_products() -> bool:
    """Whether this processor and this torch multiply 8-bit integers fast, and right."""
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        # The largest sums there are: elsewhere pairs of products are added in 16 bits.
        rows = torch.full((32, 256), int(LEVELS) + 1, dtype=torch.int8)
        rows[::2] *= -1
        expected = rows.float() @ rows.float().T
        found: Tensor = torch._int_mm(rows, rows.T)
        return bool(torch.equal(found.float(), expected))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
