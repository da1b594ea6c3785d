"""The unit LM that most benchmarks run, in transformers and here, with the same weights."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from speechlm.layouts.grid import Prompt
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.hf import from_hf
from speechlm.model.unit_lm import UnitLM

NUM_UNITS = 1000
LOGIT_SCALE = 6.0
"""Widens the logits of fresh weights until a choice is as clear as a trained LM's: without it
all units are about equally probable, and near ties, which are decided with care, abound."""
SMALL = dict(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=10,
    num_attention_heads=8,
    num_key_value_heads=8,
)
"""33 million parameters."""
QUICK = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)


def make_pair(
    shape: dict[str, Any], device: str = "cpu", text_size: int = 0
) -> tuple[Qwen2ForCausalLM, UnitLM]:
    """A Qwen2 of fresh weights, which never says anything but units, and the same as a unit LM.

    Args:
        shape: What differs from transformers' ``Qwen2Config``.
        device: Where both go.
        text_size: Text tokens that both know beside the units.
    """
    logging.set_verbosity_error()
    vocabulary = Vocabulary(
        tokenizer_fingerprint="none",
        stream_sizes=(NUM_UNITS,),
        text_size=text_size,
        text_fingerprint="none" if text_size else None,
    )
    config = dict(max_position_embeddings=2048, tie_word_embeddings=False) | shape
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary.size, **config)).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(LOGIT_SCALE)
        # Of all the others, some unit's logit is always positive.
        model.get_output_embeddings().weight[: vocabulary.first_unit] = 0
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, None)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        decoder = from_hf(folder, device=device)
    return model.to(device), UnitLM(decoder, vocabulary, build_layout("flat", {}, 1))


def weights_read(lm: UnitLM) -> int:
    """Weights that are read for every unit: the layers, and the head's rows for what may come."""
    decoder = lm.decoder
    layers = sum(weight.numel() for weight in decoder.model.layers.parameters())
    head_rows = sum(map(len, lm.layout.row_ids(lm.vocabulary)))
    return layers + head_rows * decoder.config.model_dim


def random_prompt(lm: UnitLM, length: int, generator: torch.Generator) -> Prompt:
    """Speech to go on from: a mark and units, ``length`` columns."""
    codes = torch.randint(NUM_UNITS, (1, length - 1), generator=generator)
    return lm.layout.prompt(lm.vocabulary, {"speech": codes})


@torch.inference_mode()
def continue_with_transformers(
    model: Qwen2ForCausalLM, ids: torch.Tensor, count: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """``count`` greedy ids after each prompt [B, S], with the default cache: int64 [B, count]."""
    mask = torch.ones_like(ids) if mask is None else mask
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return output[:, ids.shape[1] :]
