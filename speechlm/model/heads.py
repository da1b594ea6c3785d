"""From the body's states to the streams of the next position.

Without a depth transformer every stream reads its scores off the state, side by side: its head
is the rows of the output matrix that are its ids. With one, streams follow one another.
:func:`row_logits` scores columns that are known, :class:`RowSampler` makes new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from speechlm.errors import InputError
from speechlm.model.decoder import Decoder

Choose = Callable[[int, Tensor], Tensor]
"""From a row and its logits [N, V_r] to what it shall hold, int64 [N], indices in its ids."""


def local_ids(ids: Tensor, row_ids: Sequence[Tensor]) -> Tensor:
    """Where joint ids stand among the ids of their row.

    Args:
        ids: int64 [N, R], each one of its row's.
        row_ids: Sorted, R tensors int64 [V_r].

    Returns:
        int64 [N, R].

    Raises:
        InputError: Another number of rows.
    """
    if ids.ndim != 2 or ids.shape[1] != len(row_ids):
        raise InputError(f"expected ids [N, {len(row_ids)}] of as many rows, got {list(ids.shape)}")
    columns = ids.T.contiguous()
    found = [
        torch.searchsorted(known.to(ids.device), row)
        for known, row in zip(row_ids, columns, strict=True)
    ]
    return torch.stack(found, dim=1)


def row_logits(
    decoder: Decoder, hidden: Tensor, ids: Tensor, row_ids: Sequence[Tensor]
) -> list[Tensor]:
    """Score known columns.

    Args:
        decoder: Whose heads.
        hidden: Its states, each before the column that follows, float [N, D].
        ids: The columns that follow, int64 [N, R], joint ids.
        row_ids: The ids that each row may hold, sorted, R tensors int64 [V_r].

    Returns:
        R tensors float [N, V_r].

    Raises:
        InputError: Another number of rows.
    """
    if ids.ndim != 2 or ids.shape[1] != len(row_ids):
        raise InputError(f"expected ids [N, {len(row_ids)}] of as many rows, got {list(ids.shape)}")
    row_ids = [known.to(hidden.device) for known in row_ids]
    depth = decoder.depth
    scores = _body_logits(decoder, hidden, row_ids[: _rows_of_body(decoder, row_ids)])
    if depth is None:
        return scores
    local = local_ids(ids, row_ids)
    return [*scores, *depth(hidden, local, row_ids, decoder.model.embed_tokens.weight)]


def joined_head(decoder: Decoder, row_ids: Sequence[Tensor]) -> nn.Module | None:
    """The heads that read the body's state as one linear layer, [N, D] to [N, sum of V_r].

    It shares the decoder's weights where rows are neighbours.

    Returns:
        None where the depth transformer predicts all rows.

    Raises:
        InputError: The depth transformer was made for other rows.
    """
    row_ids = row_ids[: _rows_of_body(decoder, row_ids)]
    if not row_ids:
        return None
    if _is_everything(decoder, row_ids) and decoder.lm_head is not None:
        return decoder.lm_head
    source = decoder.model.embed_tokens if decoder.lm_head is None else decoder.lm_head
    known = torch.cat(list(row_ids)).to(decoder.device)
    first, last = int(known[0]), int(known[-1]) + 1
    neighbours = torch.arange(first, last, device=known.device)
    chosen = slice(first, last) if torch.equal(known, neighbours) else known
    bias = source.bias if isinstance(source, nn.Linear) else None
    head = nn.Linear(1, 1, bias=False, device="meta")
    head.out_features, head.in_features = len(known), decoder.config.model_dim
    head.weight = nn.Parameter(source.weight.detach()[chosen], requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias.detach()[chosen], requires_grad=False)
    return head


class RowSampler:
    """Makes columns stream by stream: the inner loop of generation.

    Made once for a decoder whose weights no longer change.

    Args:
        decoder: May be one made ready to decode.
        row_ids: The ids that each row may hold, sorted, R tensors int64 [V_r].
        head: What :func:`joined_head` made of the decoder, or something that computes the same
            faster; None to make it here, for which a decoder must have plain weights.

    Raises:
        InputError: The depth transformer was made for other rows.
    """

    def __init__(
        self, decoder: Decoder, row_ids: Sequence[Tensor], head: nn.Module | None = None
    ) -> None:
        self.row_ids = [known.to(decoder.device) for known in row_ids]
        count = _rows_of_body(decoder, self.row_ids)
        self._head = joined_head(decoder, self.row_ids) if head is None else head
        self._sizes = [len(known) for known in self.row_ids[:count]]
        self._depth = decoder.depth
        self._table = decoder.model.embed_tokens.weight.detach()
        self._joint = torch.cat(self.row_ids)
        sizes = torch.tensor([0, *(len(known) for known in self.row_ids[:-1])])
        self._starts = sizes.cumsum(0).to(decoder.device)

    def frame(self, hidden: Tensor, choose: Choose, num_rows: int | None = None) -> Tensor:
        """Choose the streams of the next column, in order.

        Args:
            hidden: The body's states, float [N, D].
            choose: Called for rows 0, 1, … in turn.
            num_rows: Stop after so many rows, where the caller knows what the others hold;
                None for all.

        Returns:
            Joint ids, int64 [N, R], or [N, num_rows].
        """
        num_rows = len(self.row_ids) if num_rows is None else num_rows
        chosen: list[Tensor] = []
        if self._head is not None:
            scores = torch.split(self._head(hidden), self._sizes, dim=1)
            chosen += [choose(row, logits) for row, logits in enumerate(scores[:num_rows])]
        if self._depth is not None and len(chosen) < num_rows:
            state = self._depth.begin(hidden, self.row_ids, self._table)
            for row in range(len(chosen), num_rows):
                logits = self._depth.step(state, chosen[-1] if chosen else None)
                chosen.append(choose(row, logits))
        return self._joint[torch.stack(chosen, dim=1) + self._starts[:num_rows]]


def _rows_of_body(decoder: Decoder, row_ids: Sequence[Tensor]) -> int:
    """How many of the rows the body's own head predicts."""
    if decoder.depth is None:
        return len(row_ids)
    decoder.depth.check(row_ids)
    return decoder.depth.first_row


def _is_everything(decoder: Decoder, row_ids: Sequence[Tensor]) -> bool:
    return len(row_ids) == 1 and len(row_ids[0]) == decoder.config.vocab_size


def _body_logits(decoder: Decoder, hidden: Tensor, row_ids: Sequence[Tensor]) -> list[Tensor]:
    if not row_ids:
        return []
    if _is_everything(decoder, row_ids):
        return [decoder.logits(hidden)]
    # One product for all rows; to split it costs nothing, forth or back.
    scores = decoder.logits(hidden, torch.cat(list(row_ids)))
    return list(torch.split(scores, [len(known) for known in row_ids], dim=-1))
