"""k-means over frames of features: seeded, in blocks, so that memory stays bounded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechlm.errors import CheckpointError
from speechlm.files import write_aside
from speechlm.progress import progress
from speechlm_tokenizers.nearest import NearestCentroid

BLOCK = 16_384
"""Frames compared with all centroids at once."""
ONE_HOT = 2**24
"""Most entries of the matrix that says which frame is of which unit."""


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
    centroids = plus_plus(features, num_units, generator)
    for _ in range(iterations):
        centroids = lloyd_pass(features, centroids, generator, assign)
    return centroids


def fit_resumable(
    features: Tensor, num_units: int, iterations: int, seed: int, folder: Path | None = None
) -> Tensor:
    """The same, shown as it goes on, and going on after a kill where ``folder`` says it was.

    Args:
        features: float32 [N, D], N >= ``num_units``, on the device to compute on.
        num_units: Centroids.
        iterations: Most passes over all features; it ends when nothing moves.
        seed: Decides seeds and restarts.
        folder: Holds the centroids after each pass; None to keep none.

    Returns:
        float32 [num_units, D], the same whether it was killed or not.

    Raises:
        CheckpointError: What was saved cannot be read.
    """

    def generator(number: int) -> torch.Generator:
        return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)

    done, centroids = _last_pass(folder)
    if centroids is None:
        centroids = plus_plus(features, num_units, generator(0))
        _save_pass(folder, 0, centroids)
    centroids = centroids.to(features.device)
    with progress("k-means", iterations, "passes") as advance:
        advance(done)
        for number in range(done + 1, iterations + 1):
            before = centroids
            centroids = lloyd_pass(
                features, before, generator(number), lambda some, of: NearestCentroid(of)(some)
            )
            _save_pass(folder, number, centroids)
            advance()
            if torch.equal(before, centroids):
                break
    return centroids.cpu()


def _save_pass(folder: Path | None, number: int, centroids: Tensor) -> None:
    if folder is None:
        return
    with write_aside(folder / f"centroids-{number:06d}.safetensors") as aside:
        save_file({"centroids": centroids.cpu().contiguous()}, aside)
    (folder / f"centroids-{number - 1:06d}.safetensors").unlink(missing_ok=True)


def _last_pass(folder: Path | None) -> tuple[int, Tensor | None]:
    """The last pass that was saved, and its centroids."""
    found = [] if folder is None else sorted(folder.glob("centroids-*.safetensors"))
    if not found:
        return 0, None
    number = re.fullmatch(r"centroids-(\d+)", found[-1].stem)
    assert number is not None
    try:
        return int(number[1]), load_file(found[-1])["centroids"]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{found[-1]} cannot be read ({error}); delete {folder} to begin anew"
        ) from error


def lloyd_pass(
    features: Tensor,
    centroids: Tensor,
    generator: torch.Generator,
    nearest: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Move each centroid to the mean of its frames, an empty one to a frame that is far.

    Args:
        features: float32 [N, D].
        centroids: float32 [V, D].
        generator: Draws the far frames; on the CPU.
        nearest: Gives the nearest of centroids for features, as :func:`assign` does.

    Returns:
        float32 [V, D].
    """
    codes = nearest(features, centroids)
    counts = torch.bincount(codes, minlength=len(centroids))
    empty = counts == 0
    means = _sums(features, codes, len(centroids)) / counts.clamp(min=1)[:, None]
    if empty.any():
        distances = [
            (block - means[block_codes]).square().sum(dim=1)
            for block, block_codes in _blocks(features, codes, BLOCK)
        ]
        weights = torch.cat(distances).cpu() + 1e-12
        far = torch.multinomial(weights, int(empty.sum()), generator=generator)
        means[empty] = features[far.to(features.device)]
    return means


def _sums(features: Tensor, codes: Tensor, num_units: int) -> Tensor:
    """The sum of each unit's frames, float32 [V, D], in the same order every time."""
    if features.device.type == "cpu":
        return features.new_zeros(num_units, features.shape[1]).index_add_(0, codes, features)
    # There, index_add_ adds in whichever order the frames come: other last bits each time.
    return _sums_by_product(features, codes, num_units)


def _sums_by_product(features: Tensor, codes: Tensor, num_units: int) -> Tensor:
    sums = features.new_zeros(num_units, features.shape[1])
    units = torch.arange(num_units, device=codes.device)
    for some, their_codes in _blocks(features, codes, max(1, ONE_HOT // num_units)):
        sums += (units[:, None] == their_codes).to(some.dtype) @ some
    return sums


def _blocks(features: Tensor, codes: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(torch.split(features, size), torch.split(codes, size), strict=True)


def plus_plus(features: Tensor, num_units: int, generator: torch.Generator) -> Tensor:
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
        index = int(torch.multinomial(distance.cpu() + 1e-12, 1, generator=generator))
        chosen.append(index)
        distance = torch.minimum(distance, (features - features[index]).square().sum(dim=1))
    return features[torch.tensor(chosen)]
