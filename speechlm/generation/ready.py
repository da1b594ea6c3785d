"""An LM made ready to decode, once for all engines that run it."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from speechlm.model.decoder import Decoder
from speechlm.model.fast import prepare
from speechlm.model.fast_linear import Weights, fast_linear
from speechlm.model.heads import RowSampler, joined_head
from speechlm.model.unit_lm import UnitLM


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ready:
    """What all engines of one LM share."""

    decoder: Decoder
    sampler: RowSampler
    row_ids: tuple[Tensor, ...]
    barriers: list[Tensor]
    """Added to scores: 0 where an id may come in a row, else -inf; R tensors float32 [M, V_r]."""
    head: nn.Module | None
    """From the body's state to the rows that it predicts itself."""
    dtype: torch.dtype


_Stamp = tuple[tuple[int, int], ...]
_READY: WeakKeyDictionary[UnitLM, dict[tuple[Weights, torch.device], tuple[_Stamp, Ready]]] = (
    WeakKeyDictionary()
)


def get_ready(lm: UnitLM, weights: Weights) -> Ready:
    """Prepare an LM once, however many engines it gets, until its weights change."""
    known = _READY.setdefault(lm, {})
    key = (weights, lm.device)
    # Where each tensor lies, and how often it was written to.
    stamp = tuple(
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for tensor in lm.decoder.parameters()
    )
    if key not in known or known[key][0] != stamp:
        decoder = prepare(lm.decoder, weights)
        row_ids = lm.layout.row_ids(lm.vocabulary)
        head = joined_head(lm.decoder if weights == "int8" else decoder, row_ids)
        if isinstance(head, nn.Linear):
            head = fast_linear(head, weights)
        grammar = lm.layout.grammar(lm.vocabulary)
        ready = Ready(
            decoder=decoder,
            sampler=RowSampler(decoder, row_ids, head),
            head=head,
            row_ids=row_ids,
            barriers=[
                torch.where(grammar.masks_of(row)[:, ids], 0.0, -torch.inf).to(lm.device)
                for row, ids in enumerate(row_ids)
            ],
            dtype=decoder.model.embed_tokens.weight.dtype,
        )
        known[key] = stamp, ready
    return known[key][1]
