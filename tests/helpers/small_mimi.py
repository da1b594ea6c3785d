"""A small Mimi of random weights, as transformers and as moshi save it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPE: dict[str, Any] = dict(
    upsampling_ratios=[8, 5, 4],
    hidden_size=32,
    num_filters=4,
    num_residual_layers=2,
    codebook_size=256,
    codebook_dim=16,
    num_quantizers=8,
    vector_quantization_hidden_dimension=16,
    upsample_groups=32,
    num_hidden_layers=2,
    intermediate_size=48,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=4,
)
"""75 frames a second of 320 samples."""
HOP = 320


def small_mimi(seed: int = 0, **changes: Any) -> Any:
    """transformers' ``MimiModel``, whose codebooks lie where its encoder's output does."""
    from transformers import MimiConfig, MimiModel

    torch.manual_seed(seed)
    model = MimiModel(MimiConfig(**{**SHAPE, **changes})).eval()
    heard: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "layer_scale" in name:
                parameter.uniform_(0.2, 0.6)
            elif "layernorm.weight" in name:
                parameter.uniform_(0.5, 1.5)
            elif "transformer" in name:
                parameter.normal_(std=0.2)
        for kind in ("semantic", "acoustic"):
            projection = model.get_submodule(
                f"quantizer.{kind}_residual_vector_quantizer.input_proj"
            )
            projection.register_forward_hook(
                lambda _, __, output, kind=kind: heard.__setitem__(kind, output[0].t())
            )
        model.encode(0.3 * torch.randn(1, 1, 100 * HOP))
        for name, buffer in model.named_buffers():
            if found := re.search(
                r"(semantic|acoustic)\w+\.layers\.(\d+)\.codebook\.embed_sum", name
            ):
                latents, level = heard[found[1]], int(found[2])
                rows = torch.randn_like(buffer) * latents.std(dim=0) / (1 + level)
                buffer.copy_(rows + latents.mean(dim=0) if level == 0 else rows)
        for name, usage in model.named_buffers():
            if name.endswith("cluster_usage"):
                sums = model.get_buffer(name.replace("cluster_usage", "embed_sum"))
                usage.uniform_(0.5, 2)
                sums.mul_(usage[:, None])
                usage[0] = 0  # never assigned
                sums[0] *= 1e-5
        for codebook in (m for m in model.modules() if hasattr(m, "_embed")):
            codebook._embed = None  # what it had worked out of the buffers before
        for name in ("semantic", "acoustic"):
            projection = model.get_submodule(
                f"quantizer.{name}_residual_vector_quantizer.input_proj"
            )
            projection._forward_hooks.clear()
    return model


def see_only_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have transformers attend to ``sliding_window`` positions: before 5 it forgets to."""
    from transformers import masking_utils
    from transformers.models.mimi import modeling_mimi

    if hasattr(modeling_mimi, "create_causal_mask"):
        windowed = masking_utils.create_sliding_window_causal_mask
        monkeypatch.setattr(modeling_mimi, "create_causal_mask", windowed)


def save_as_moshi(folder: Path, path: Path) -> Path:
    """Write what transformers saved under the names, and in the order, that moshi's file has."""
    tensors = {_moshi_name(name): t for name, t in load_file(folder / "model.safetensors").items()}
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        start = name.removesuffix("q_proj.weight")
        q, k, v = (tensors.pop(f"{start}{letter}_proj.weight") for letter in "qkv")
        tensors[f"{start}in_proj_weight"] = torch.cat([_paired(q), _paired(k), v])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _paired(weight: Tensor) -> Tensor:
    """Rotary pairs side by side, which transformers keeps half a head apart."""
    heads = weight.view(SHAPE["num_attention_heads"], 2, -1, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)


def _moshi_name(name: str) -> str:
    """What moshi calls a weight of a model with one residual block a stage and three stages."""
    for ours, theirs in (
        (r"^(downsample|encoder.*)\.conv\.", r"\1.conv.conv."),
        (r"^(upsample|decoder\.layers\.[258])\.conv\.", r"\1.convtr.convtr."),
        (r"^(decoder.*)\.conv\.", r"\1.conv.conv."),
        (r"^(downsample)\.", r"\1.conv."),
        (r"^(upsample)\.", r"\1.convtr."),
        (r"^((?:en|de)coder)\.layers\.", r"\1.model."),
        (r"^((?:en|de)coder_transformer)\.", r"\1.transformer."),
        (r"semantic_residual_vector_quantizer\.layers", "rvq_first.vq.layers"),
        (r"acoustic_residual_vector_quantizer\.layers", "rvq_rest.vq.layers"),
        (r"semantic_residual_vector_quantizer", "rvq_first"),
        (r"acoustic_residual_vector_quantizer", "rvq_rest"),
        (r"\.codebook\.initialized", "._codebook._initialized"),
        (r"\.codebook\.embed_sum", "._codebook.embedding_sum"),
        (r"\.codebook\.", "._codebook."),
        (r"\.mlp\.fc(\d)\.", r".linear\1."),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.input_layernorm\.", ".norm1."),
        (r"\.post_attention_layernorm\.", ".norm2."),
        (r"\.self_attn_layer_scale\.", ".layer_scale_1."),
        (r"\.mlp_layer_scale\.", ".layer_scale_2."),
    ):
        name = re.sub(ours, theirs, name)
    return name
