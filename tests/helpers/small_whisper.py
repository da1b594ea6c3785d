"""Small random Whispers on disk, plain and with a codebook, as their publishers save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZES: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 4,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 20,
    "max_source_positions": 100,
    "activation_function": "gelu",
}
"""Windows of 2 s."""

GLM: dict[str, Any] = {
    **SIZES,
    "architectures": ["WhisperVQForConditionalGeneration"],
    "encoder_causal_convolution": True,
    "encoder_causal_attention": False,
    "quantize_causal_encoder": False,
    "quantize_causal_block_size": 16,
    "quantize_position": 3,
    "quantize_vocab_size": 200,
    "pooling_kernel_size": 4,
    "pooling_type": "avg",
    "pooling_position": 3,
}
"""GLM-4-Voice's tokenizer in small: blocks of 0.32 s."""


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors by the published names, those of the decoder beside them."""
    generator = torch.Generator().manual_seed(seed)
    dim, ffn = config["d_model"], config["encoder_ffn_dim"]

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    tensors = {
        "conv1.weight": draw(dim, config["num_mel_bins"], 3, scale=0.2),
        "conv1.bias": draw(dim),
        "conv2.weight": draw(dim, dim, 3, scale=0.2),
        "conv2.bias": draw(dim),
        "embed_positions.weight": draw(config["max_source_positions"], dim, scale=0.3),
        "layer_norm.weight": 1 + draw(dim, scale=0.1),
        "layer_norm.bias": draw(dim, scale=0.1),
    }
    for index in range(config["encoder_layers"]):
        layer = f"layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{layer}self_attn.{name}.weight"] = draw(dim, dim, scale=0.3)
            if name != "k_proj":
                tensors[f"{layer}self_attn.{name}.bias"] = draw(dim, scale=0.1)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            tensors[f"{layer}{name}.weight"] = 1 + draw(dim, scale=0.1)
            tensors[f"{layer}{name}.bias"] = draw(dim, scale=0.1)
        tensors[f"{layer}fc1.weight"] = draw(ffn, dim, scale=0.3)
        tensors[f"{layer}fc1.bias"] = draw(ffn, scale=0.1)
        tensors[f"{layer}fc2.weight"] = draw(dim, ffn, scale=0.3)
        tensors[f"{layer}fc2.bias"] = draw(dim, scale=0.1)
    if config.get("quantize_vocab_size"):
        tensors["codebook.weight"] = draw(config["quantize_vocab_size"], dim, scale=2.0)
        tensors["embed_positions2.weight"] = draw(25, dim)
        tensors["ema_count"] = torch.ones(config["quantize_vocab_size"])
    whole = {f"model.encoder.{name}": tensor for name, tensor in tensors.items()}
    whole["model.decoder.embed_tokens.weight"] = draw(10, dim)
    return whole


def save(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor] | None = None, shards: int = 1
) -> Path:
    """Write a checkpoint; give its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = weights(config) if tensors is None else tensors
    names = list(tensors)
    for shard in range(shards):
        name = (
            "model.safetensors" if shards == 1 else f"model-{shard:05}-of-{shards:05}.safetensors"
        )
        save_file({n: tensors[n].contiguous() for n in names[shard::shards]}, folder / name)
    return folder
