"""Untrained unit LMs of every layout and head, wide enough that what they say varies."""

from __future__ import annotations

import functools
from typing import Any

import torch
from layout_cases import build_case

from speechlm.model.architecture import DecoderConfig, DepthConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM


def small_lm(case: str = "flat", *, depth: bool = False, seed: int = 0, **shape: Any) -> UnitLM:
    """An LM of one of ``layout_cases.CASES``; ``shape`` overrides the decoder's."""
    layout, vocabulary = build_case(case)
    row_sizes = tuple(len(ids) for ids in layout.row_ids(vocabulary))
    config = dict(
        num_layers=2,
        model_dim=16,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=24,
        max_positions=64,
        tie_embeddings=False,
        dropout=0.0,
        vocab_size=vocabulary.size,
        depth=DepthConfig(
            num_layers=1,
            dim=16,
            num_heads=2,
            num_kv_heads=2,
            ffn_dim=24,
            per_step_weights=True,
            row_sizes=row_sizes,
        )
        if depth
        else None,
    )
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(**{**config, **shape}))
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    return UnitLM(decoder, vocabulary, layout)


@functools.lru_cache(maxsize=64)
def shared_lm(case: str = "flat", depth: bool = False) -> UnitLM:
    """The same, made once: do not change it."""
    return small_lm(case, depth=depth)
