"""Log probabilities of known cells, for many sequences of unequal length.

Nothing depends on what is scored beside it: sequences of like length share a batch, filled up
on the right, where causal layers do not look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn import functional as F

from speechlm.model.decoder import Decoder
from speechlm.model.fast import prepare
from speechlm.model.fast_linear import Weights, fast_linear
from speechlm.model.heads import joined_head, local_ids

CPU_POSITIONS, GPU_POSITIONS = 2048, 32_768
"""LM positions read at once: as many as keep the cores busy; more only leave their caches."""
LEAST_FILLED = 0.75
"""No sequence of a batch is shorter than this share of the longest."""
SCORES_AT_ONCE = 2**24
"""Logits held at once, which bounds memory where there is text."""
PACK_FROM = 8192
"""Positions from which packing a decoder's weights for a CPU is won back."""


def log_probs(
    decoder: Decoder,
    row_ids: Sequence[Tensor],
    sequences: Sequence[Tensor],
    wanted: Sequence[Tensor],
    weights: Weights = "float32",
) -> list[Tensor]:
    """Natural logarithms of the probabilities of cells, given the columns before theirs.

    Args:
        decoder: In evaluation mode; it is left as it is.
        row_ids: The ids that each row may hold, sorted, R tensors int64 [V_r].
        sequences: int64 [R, S] of joint ids, S - 1 at most the decoder's ``max_positions``.
        wanted: Which cells, bool [R, S] each, none in the first column.
        weights: As :func:`speechlm.model.fast.prepare` takes them.

    Returns:
        float32 [R, S] each, on the CPU; 0 where not wanted.

    Raises:
        ConfigError: As ``prepare`` does.
    """
    results = [torch.zeros(cells.shape) for cells in wanted]
    columns = [cells.any(dim=0).nonzero()[:, 0] for cells in wanted]
    # What follows the last of them need not be read.
    lengths = [int(found[-1]) if len(found) else 0 for found in columns]
    rows = [row for row in range(len(row_ids)) if any(bool(cells[row].any()) for cells in wanted)]
    positions = CPU_POSITIONS if decoder.device.type == "cpu" else GPU_POSITIONS
    with torch.inference_mode():
        scorer = _Scorer(decoder, row_ids, rows, weights, num_positions=sum(lengths))
        for chosen in _batches(lengths, positions):
            longest = lengths[chosen[-1]]
            ids = torch.zeros(len(chosen), len(row_ids), longest, dtype=torch.int64)
            for at, index in enumerate(chosen):
                ids[at, :, : lengths[index]] = sequences[index][:, : lengths[index]]
            select = [at * longest + columns[index] - 1 for at, index in enumerate(chosen)]
            following = [sequences[index][:, columns[index]].T for index in chosen]
            scores = scorer(ids, torch.cat(select), torch.cat(following))
            parts = torch.split(scores, [len(part) for part in following])
            for index, part in zip(chosen, parts, strict=True):
                results[index][:, columns[index]] = part.T
    return [found.where(cells, 0.0) for found, cells in zip(results, wanted, strict=True)]


def _batches(lengths: Sequence[int], positions: int) -> Iterator[list[int]]:
    """Indices of like lengths, the shortest first within a batch; those of length 0 are left."""
    order = sorted((at for at, n in enumerate(lengths) if n), key=lambda at: lengths[at])
    while order:
        longest = lengths[order[-1]]
        least = max(len(order) - max(positions // longest, 1), 0)
        while lengths[order[least]] < LEAST_FILLED * longest:
            least += 1
        yield order[least:]
        del order[least:]


class _Scorer:
    """A decoder with its heads, for log probabilities of known columns.

    Args:
        decoder: It is left as it is.
        row_ids: The ids that each row may hold.
        rows: Those whose cells are asked for.
        weights: What the decoder computes with.
        num_positions: To be read in all.
    """

    def __init__(
        self,
        decoder: Decoder,
        row_ids: Sequence[Tensor],
        rows: list[int],
        weights: Weights,
        *,
        num_positions: int,
    ) -> None:
        weight = decoder.model.embed_tokens.weight
        packs = weight.device.type == "cpu" and weight.dtype == torch.float32
        packs = (packs and num_positions >= PACK_FROM) or weights != "float32"
        self._decoder = prepare(decoder, weights) if packs else decoder
        self._depth = self._decoder.depth
        self._row_ids = [known.to(weight.device) for known in row_ids]
        # A depth transformer goes through all rows in order, after those that the body predicts.
        self._rows = rows if self._depth is None else list(range(len(row_ids)))
        read = [row_ids[row] for row in self._rows]
        head = joined_head(decoder if weights == "int8" else self._decoder, read)
        self._head = fast_linear(head, weights) if packs and isinstance(head, Linear) else head
        num_read = len(read) if self._depth is None else self._depth.first_row
        self._sizes = [len(known) for known in read[:num_read]]
        self._at_once = max(SCORES_AT_ONCE // max(sum(map(len, read)), 1), 1)

    def __call__(self, ids: Tensor, select: Tensor, following: Tensor) -> Tensor:
        """Score columns.

        Args:
            ids: What is read, int64 [B, R, S].
            select: Which positions come before the columns, int64 [N], indices into B * S.
            following: The columns, int64 [N, R].

        Returns:
            float32 [N, R] on the CPU; 0 in rows that were not asked for.
        """
        device = self._decoder.device
        hidden = self._decoder.hidden(ids.to(device), select=select.to(device))
        local = local_ids(following.to(device), self._row_ids)
        parts = zip(
            torch.split(hidden, self._at_once), torch.split(local, self._at_once), strict=True
        )
        return torch.cat([self._score(*part) for part in parts]).cpu()

    def _score(self, hidden: Tensor, local: Tensor) -> Tensor:
        """States [N, D] and the columns that follow, as indices in their rows' ids [N, R]."""
        logits: list[Tensor] = []
        if self._head is not None:
            logits += torch.split(self._head(hidden), self._sizes, dim=1)
        if self._depth is not None:
            table = self._decoder.model.embed_tokens.weight
            logits += self._depth(hidden, local, self._row_ids, table)
        scores = torch.zeros(local.shape, device=hidden.device)
        for row, of_row in zip(self._rows, logits, strict=True):
            scores[:, row] = -F.cross_entropy(of_row.float(), local[:, row], reduction="none")
        return scores
