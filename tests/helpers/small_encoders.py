"""Small encoders of every family with random weights, in folders as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NUM_LAYERS = 3
DIM = 32
SIZES: dict[str, Any] = dict(
    hidden_size=DIM, num_attention_heads=4, intermediate_size=64, num_hidden_layers=NUM_LAYERS
)
WAVE: dict[str, Any] = dict(
    **SIZES,
    conv_dim=[24] * 5,
    conv_stride=[5, 4, 4, 2, 2],
    conv_kernel=[10, 4, 4, 3, 2],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
STABLE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
FAMILIES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "hubert": ("HubertModel", "HubertConfig", WAVE),
    "hubert-large": ("HubertModel", "HubertConfig", {**WAVE, **STABLE}),
    "mhubert-25hz": (
        "HubertModel",
        "HubertConfig",
        {
            **WAVE,
            "conv_dim": [24] * 6,
            "conv_stride": [5, 4, 4, 2, 2, 2],
            "conv_kernel": [10, 4, 4, 3, 2, 2],
        },
    ),
    "mhubert-147": ("HubertModel", "HubertConfig", {**WAVE, "conv_pos_batch_norm": True}),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", WAVE),
    "xls-r": ("Wav2Vec2Model", "Wav2Vec2Config", {**WAVE, **STABLE}),
    "wavlm": ("WavLMModel", "WavLMConfig", WAVE),
    "wavlm-large": ("WavLMModel", "WavLMConfig", {**WAVE, **STABLE}),
    "data2vec": (
        "Data2VecAudioModel",
        "Data2VecAudioConfig",
        {**WAVE, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5},
    ),
    "w2v-bert": (
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        {**SIZES, "feature_projection_input_dim": 160},
    ),
    "w2v-bert-relative": (
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        {**SIZES, "feature_projection_input_dim": 160, "position_embeddings_type": "relative"},
    ),
    "w2v-bert-rotary": (
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        {**SIZES, "feature_projection_input_dim": 160, "position_embeddings_type": "rotary"},
    ),
}


def small_encoder(name: str) -> Any:
    """A model of transformers with random weights, in evaluation mode."""
    import transformers

    kind, config, settings = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        # As they are made, norms and biases do nothing: an exchange of them would not show.
        for name, tensor in model.named_parameters():
            if "norm" in name and name.endswith(".weight"):
                nn.init.uniform_(tensor, 0.5, 1.5)
            elif tensor.ndim == 1:
                nn.init.normal_(tensor, std=0.1)
        for name, tensor in model.named_buffers():
            if "running" in name:
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def save_encoder(name: str, folder: Path) -> Path:
    """Write one to a folder as transformers does, and give the folder."""
    small_encoder(name).save_pretrained(folder)
    return folder


def some_waves(*lengths: int, seed: int = 1) -> list[Tensor]:
    """Recordings of sounds that differ within and between them, float32 [T]."""
    generator = torch.Generator().manual_seed(seed)
    waves = []
    for length in lengths:
        pitch = 60 * torch.rand(length // 800 + 1, generator=generator).repeat_interleave(800)
        phase = (2 * torch.pi * pitch[:length] * 30 / 16_000).cumsum(dim=0)
        noise = torch.randn(length, generator=generator)
        waves.append(0.2 * phase.sin() + 0.02 * noise)
    return waves
