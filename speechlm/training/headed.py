"""The decoder as it is trained: one call from a batch to the scores of what comes next."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import Module

from speechlm.model.decoder import Decoder
from speechlm.model.heads import local_ids, row_logits


class HeadedDecoder(Module):
    """A decoder and the ids of its rows.

    Data parallelism wraps a module's ``forward``, so all that has weights is called in this one.
    """

    def __init__(self, decoder: Decoder, row_ids: Sequence[Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        # No buffers: those of a module that is made without weights would be lost.
        self._row_ids = tuple(row_ids)

    def forward(
        self, ids: Tensor, *, select: Tensor, targets: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Score the columns that follow.

        Args:
            ids: int64 [B, R, S].
            select: Positions before those columns, into the flattened B * S, int64 [N].
            targets: The columns, int64 [N, R], joint ids.

        Returns:
            Logits of each row, R of float [N, V_r], and which of them is right, int64 [N, R].
        """
        self._row_ids = tuple(known.to(ids.device) for known in self._row_ids)
        hidden = self.decoder.hidden(ids, select=select)
        scores = row_logits(self.decoder, hidden, targets, self._row_ids)
        if len(self._row_ids) == 1 and scores[0].shape[1] == self.decoder.config.vocab_size:
            return scores, targets
        return scores, local_ids(targets, self._row_ids)
