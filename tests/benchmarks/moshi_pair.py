"""A model of Moshi's shape and fresh weights, in the moshi package and here."""

from __future__ import annotations

import os
from typing import Any

# On a CPU one norm of the whole model would be compiled, which needs a C++ compiler.
os.environ.setdefault("NO_TORCH_COMPILE", "1")

import torch
from moshi.models.lm import LMGen, LMModel
from torch import Tensor

from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import CONTROLS, Vocabulary
from speechlm.model.architecture import DecoderConfig, DepthConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM

NUM_CODEBOOKS, NUM_UNITS, CONTEXT = 8, 2048, 256
DELAYS = [0, 0, 1, 1, 1, 1, 1, 1, 1]
"""Of the text and the codebooks: the first, which is semantic, comes before the others."""
SMALL = dict(text=31_000, dim=512, layers=7, heads=8, depth_dim=256, depth_layers=6, depth_heads=4)
QUICK = dict(text=50, dim=64, layers=2, heads=2, depth_dim=32, depth_layers=2, depth_heads=2)
WIDENING = 4.125
"""Moshi's inner width of a feed-forward block; two thirds of it for each half of a gated one."""
NORM_EPS = 1e-8
LOGIT_SCALE = 6.0
"""Widens logits until choices are as clear as a trained LM's, as in qwen.py."""


def make_pair(shape: dict[str, int]) -> tuple[LMGen, UnitLM]:
    """moshi's generator, greedy and ready to stream, and a unit LM of the same weights.

    Text and 8 codebooks, each in a row of its own; no other speaker, whose codebooks would be
    read and not predicted.
    """
    torch.manual_seed(0)
    model = LMModel(
        n_q=NUM_CODEBOOKS,
        dep_q=NUM_CODEBOOKS,
        card=NUM_UNITS,
        text_card=shape["text"],
        delays=DELAYS,
        context=CONTEXT,
        dim=shape["dim"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        hidden_scale=WIDENING,
        depformer_dim=shape["depth_dim"],
        depformer_num_layers=shape["depth_layers"],
        depformer_num_heads=shape["depth_heads"],
        depformer_dim_feedforward=int(WIDENING * shape["depth_dim"]),
        # From here on as in the released model.
        causal=True,
        norm="rms_norm_f32",
        gating="silu",
        positional_embedding="rope",
        max_period=10_000,
        depformer_pos_emb="none",
        depformer_multi_linear=True,
        depformer_weights_per_step=True,
    ).eval()
    with torch.no_grad():
        for linear in (model.text_linear, *model.linears):
            linear.weight.mul_(LOGIT_SCALE)
        for table in model.emb:  # what fills streams that have not begun is one vector here
            table.weight[-1] = model.emb[0].weight[-1]
    layout = build_layout("text-parallel", {"timed": True}, NUM_CODEBOOKS)
    vocabulary = Vocabulary(
        tokenizer_fingerprint="none",
        stream_sizes=layout.stream_sizes([NUM_UNITS] * NUM_CODEBOOKS),
        text_size=shape["text"],
        text_fingerprint="none",
    )
    decoder = Decoder(_config(shape, vocabulary.size, layout.row_ids(vocabulary)))
    with torch.no_grad():
        decoder.load_state_dict(_weights(model))
    peer = LMGen(model, use_sampling=False)
    peer.streaming_forever(1)
    return peer, UnitLM(decoder, vocabulary, layout)


def _config(shape: dict[str, int], vocab_size: int, row_ids: tuple[Tensor, ...]) -> DecoderConfig:
    depth = DepthConfig(
        num_layers=shape["depth_layers"],
        dim=shape["depth_dim"],
        num_heads=shape["depth_heads"],
        num_kv_heads=shape["depth_heads"],
        ffn_dim=int(WIDENING * shape["depth_dim"]) * 2 // 3,
        norm_eps=NORM_EPS,
        last_norm=False,
        first_from_body=True,
    )
    return DecoderConfig(
        vocab_size=vocab_size,
        num_layers=shape["layers"],
        model_dim=shape["dim"],
        num_heads=shape["heads"],
        num_kv_heads=shape["heads"],
        ffn_dim=int(WIDENING * shape["dim"]) * 2 // 3,
        max_positions=CONTEXT,
        norm_eps=NORM_EPS,
        tie_embeddings=False,
        dropout=0.0,
        depth=depth.of(row_ids),
    )


def _weights(model: LMModel) -> dict[str, Tensor]:
    """moshi's weights by our names."""
    text, fill = model.text_emb.weight, model.emb[0].weight[-1]
    controls = torch.zeros(len(CONTROLS), text.shape[1])
    controls[CONTROLS.index("pad")] = fill
    # The mark stands in every row, where they have the text's own and fill in all others.
    mark = (text[-1] + NUM_CODEBOOKS * fill) / (1 + NUM_CODEBOOKS)
    controls[CONTROLS.index("speech")] = mark
    units = [table.weight[:-1] for table in model.emb]
    head = _below_controls(model.text_linear.weight)
    weights = {
        "model.embed_tokens.weight": torch.cat([controls, text[:-1], *units]),
        "model.norm.weight": model.out_norm.alpha.flatten(),
        "lm_head.weight": torch.cat([head, *(torch.zeros_like(table) for table in units)]),
        "depth.embeddings.0.weight": _below_controls(model.depformer_text_emb.weight[:-1]),
    }
    for index, layer in enumerate(model.transformer.layers):
        weights |= _layer(layer, f"model.layers.{index}.")
    for k in range(NUM_CODEBOOKS):
        weights[f"depth.heads.{k}.weight"] = _below_controls(model.linears[k].weight)
        weights[f"depth.steps.{k}.input_proj.weight"] = model.depformer_in[k].weight
        for index, layer in enumerate(model.depformer.layers):
            weights |= _layer(layer, f"depth.steps.{k}.layers.{index}.", step=k)
    for k, table in enumerate(model.depformer_emb):
        weights[f"depth.embeddings.{k + 1}.weight"] = _below_controls(table.weight[:-1])
    return weights


def _layer(layer: Any, target: str, step: int | None = None) -> dict[str, Tensor]:
    """A layer of the body, or what a step of the depth transformer uses of one."""
    gating = layer.gating if step is None else layer.gating[step]
    attention = layer.self_attn
    q, k, v = attention.in_projs[step or 0].weight.chunk(3)
    if step is None:
        q, k = (_in_halves(weight, attention.num_heads) for weight in (q, k))
    gate, up = gating.linear_in.weight.chunk(2)
    weights = {
        # Norms are shared by the steps there, and are their own here.
        "input_layernorm": layer.norm1.alpha.flatten(),
        "post_attention_layernorm": layer.norm2.alpha.flatten(),
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": attention.out_projs[step or 0].weight,
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": gating.linear_out.weight,
    }
    return {f"{target}{name}.weight": weight for name, weight in weights.items()}


def _in_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Rotary pairs stand side by side there, and half a head apart here."""
    heads = weight.view(num_heads, -1, 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)


def _below_controls(weight: Tensor) -> Tensor:
    """Rows for the controls, which every stream may hold here, and which are never chosen."""
    return torch.cat([weight.new_zeros(len(CONTROLS), weight.shape[1]), weight])
