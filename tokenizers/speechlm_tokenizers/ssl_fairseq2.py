"""Encoders of fairseq2's hub, as those of transformers: wav2vec 2.0 and w2v-BERT.

fairseq2 finds, downloads and reads the checkpoint, and is not needed afterwards. A model of one's
own is named by the path of its asset card, a YAML file that fairseq2's documentation describes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from speechlm.errors import CheckpointError, SpeechLMError
from speechlm_tokenizers.codec_loading import fold_weight_norm
from speechlm_tokenizers.ssl_features import LOG_MEL, Encoder, EncoderConfig, check_layer

FAIRSEQ2 = "fairseq2:"
"""What a model of fairseq2's hub is named with."""
CARDS: Mapping[str, Mapping[str, Any]] = {
    "xlsr2_1b_v2": {
        "model_family": "wav2vec2",
        "model_arch": "large_lv60k",
        "checkpoint": (
            "https://dl.fbaipublicfiles.com/seamlessM4T/models/unit_extraction/xlsr2_1b_v2.pt"
        ),
        "model_config": {
            "_set_": {"final_dim": 1024, "quantized_dim": 1024},
            "encoder_config": {
                "_set_": {
                    "model_dim": 1280,
                    "num_encoder_layers": 48,
                    "num_encoder_attn_heads": 16,
                    "ffn_inner_dim": 5120,
                }
            },
        },
    }
}
"""Models in fairseq2's format that have no card there: the XLS-R 1B behind SeamlessM4T's units.
Its shape is that of Babu et al. 2021, arXiv:2111.09296, table 2."""

_FRONTEND_NAMES = (
    (r"^encoder_frontend\.post_extract_layer_norm\.", "feature_projection.layer_norm."),
    (r"^encoder_frontend\.model_dim_proj\.", "feature_projection.projection."),
)
_WAV2VEC2_NAMES = (
    *_FRONTEND_NAMES,
    (r"^encoder_frontend\.feature_extractor\.layers\.", "feature_extractor.conv_layers."),
    (r"\.group_norm\.", ".layer_norm."),
    (r"^encoder_frontend\.pos_encoder\.conv\.", "encoder.pos_conv_embed.conv."),
    (r"^encoder_frontend\.layer_norm\.", "encoder.layer_norm."),
    (r"\.self_attn\.([qkv])_proj\.", r".attention.\1_proj."),
    (r"\.self_attn\.output_proj\.", ".attention.out_proj."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.ffn\.inner_proj\.", ".feed_forward.intermediate_dense."),
    (r"\.ffn\.output_proj\.", ".feed_forward.output_dense."),
    (r"\.ffn_layer_norm\.", ".final_layer_norm."),
)
_W2VBERT_NAMES = (
    *_FRONTEND_NAMES,
    (r"(layers\.\d+)\.layer_norm\.", r"\1.final_layer_norm."),
    (r"\.(ffn[12])\.inner_proj\.", r".\1.intermediate_dense."),
    (r"\.(ffn[12])\.output_proj\.", r".\1.output_dense."),
    (r"\.self_attn\.([qkv])_proj\.", r".self_attn.linear_\1."),
    (r"\.self_attn\.output_proj\.", ".self_attn.linear_out."),
    (r"\.self_attn\.sdpa\.r_proj\.", ".self_attn.linear_pos."),
    (r"\.self_attn\.sdpa\.([uv])_bias", r".self_attn.pos_bias_\1"),
    (r"\.conv_layer_norm\.", ".conv_module.layer_norm."),
    (r"(layers\.\d+)\.conv\.", r"\1.conv_module."),
)
"""fairseq2's names of tensors and transformers', applied in this order."""


def load_fairseq2(name: str, layer: int, normalize: bool | None) -> Encoder:
    """Open an encoder of fairseq2's hub up to one of its layers.

    Args:
        name: Of an asset card, such as ``wav2vec2_base``; its path, ``*.yaml``; or a key of
            ``CARDS``.
        layer: 0 for what enters the first layer, L for what leaves the L-th.
        normalize: Whether recordings are normalized; None for what fits: waves where the
            convolutions are normalized by layer, log-mels always.

    Raises:
        CheckpointError: No card has that name, it cannot be loaded, or its architecture has no
            counterpart in transformers.
        ConfigError: There is no such layer.
        PluginError: fairseq2 is not installed.
    """
    model, config = _load(name)
    model = getattr(model, "w2v2_model", model)
    config = getattr(config, "w2v2_config", config).encoder_config
    check_layer(FAIRSEQ2 + name, layer, config.num_encoder_layers)
    shape = {
        "hidden_size": config.model_dim,
        "num_attention_heads": config.num_encoder_attn_heads,
        "intermediate_size": config.ffn_inner_dim,
        "layer_norm_eps": 1e-5,
    }
    if config.use_fbank:
        shape |= _w2vbert_shape(name, config)
        family = LOG_MEL
        normalizes = True
    else:
        shape |= _wav2vec2_shape(name, config)
        family = "wav2vec2"
        normalizes = config.feature_extractor_layer_norm_convs
    ours = EncoderConfig(
        family=family,
        shape=shape,
        num_layers=layer,
        batch_norm=config.use_fbank,
        normalize=normalizes if normalize is None else normalize,
    )
    names = _W2VBERT_NAMES if config.use_fbank else _WAV2VEC2_NAMES
    return Encoder(ours, _convert(model, names))


def _load(name: str) -> tuple[Any, Any]:
    """A model of fairseq2 and its configuration."""
    from speechlm.training.running import import_fairseq2

    import_fairseq2()
    import fairseq2.recipe  # noqa: F401 (its modules import each other in a circle)
    from fairseq2.assets import AssetNotFoundError, get_asset_store
    from fairseq2.models.w2vbert import get_w2vbert_model_hub
    from fairseq2.models.wav2vec2 import get_wav2vec2_model_hub
    from fairseq2.models.wav2vec2.asr import get_wav2vec2_asr_model_hub

    hubs: dict[str, Any] = {
        "wav2vec2": get_wav2vec2_model_hub,
        "wav2vec2_asr": get_wav2vec2_asr_model_hub,
        "w2vbert": get_w2vbert_model_hub,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what fairseq2 itself does
            card = _card(name, get_asset_store())
            family = card.field("model_family").as_(str)
            if family not in hubs:
                raise CheckpointError(
                    f"{FAIRSEQ2}{name} is a {family!r}; expected one of {', '.join(hubs)}"
                )
            hub = hubs[family]()
            return hub.load_model(card, device=torch.device("cpu")), hub.get_model_config(card)
    except SpeechLMError:
        raise
    except AssetNotFoundError as error:
        raise CheckpointError(
            f"fairseq2 knows no model {name!r}; expected the name of an asset card, such as "
            "fairseq2:wav2vec2_base, or the path of one"
        ) from error
    except Exception as error:  # fairseq2's share no base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{FAIRSEQ2}{name} cannot be loaded: {reason}") from error


def _card(name: str, store: Any) -> Any:
    from fairseq2.assets import AssetCard

    if name in CARDS:
        return AssetCard(name, CARDS[name])
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        return store.retrieve_card(name)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Its checkpoint may be a path from there.
    return AssetCard(path.stem, {**values, "__base_path__": path.absolute().parent})


def _wav2vec2_shape(name: str, config: Any) -> dict[str, Any]:
    stable = config.norm_order.name == "PRE"
    _expect(name, config, "use_conformer", False)
    _expect(name, config, "pos_encoder_type", "conv")
    _expect(name, config, "pos_encoder_depth", 1)
    _expect(name, config, "layer_norm_features", not stable)
    if config.norm_order.name not in ("PRE", "POST"):
        _expect(name, config, "norm_order", "PRE or POST")
    dims, kernels, strides = zip(*config.feature_extractor_layer_descs, strict=True)
    by_layer = config.feature_extractor_layer_norm_convs
    return {
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "layer" if by_layer else "group",
        "do_stable_layer_norm": stable,
        "conv_dim": list(dims),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "conv_bias": config.feature_extractor_bias,
        "num_conv_pos_embeddings": config.pos_conv_kernel_size,
        "num_conv_pos_embedding_groups": config.num_pos_conv_groups,
    }


def _w2vbert_shape(name: str, config: Any) -> dict[str, Any]:
    _expect(name, config, "use_conformer", True)
    _expect(name, config, "pos_encoder_type", "relative")
    _expect(name, config, "layer_norm_features", False)
    _expect(name, config, "fbank_stride", 2)
    _expect(name, config, "sample_fbank_every_k", 1)
    return {
        "hidden_act": "swish",
        "feature_projection_input_dim": config.feature_dim,
        "position_embeddings_type": "relative",
        "rotary_embedding_base": 10_000,
        "max_source_positions": config.max_seq_len,
        "left_max_position_embeddings": 64,
        "right_max_position_embeddings": 8,
        "conv_depthwise_kernel_size": config.depthwise_conv_kernel_size,
    }


def _expect(name: str, config: Any, key: str, expected: Any) -> None:
    if (found := getattr(config, key)) != expected:
        raise CheckpointError(
            f"{FAIRSEQ2}{name} has no counterpart in transformers: expected {key} {expected!r}, "
            f"got {found!r}"
        )


def _convert(model: Any, names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    converted = {}
    for name, tensor in fold_weight_norm(model.state_dict()).items():
        for theirs, ours in names:
            name = re.sub(theirs, ours, name)
        converted[name] = tensor
    if "feature_projection.projection.weight" not in converted:
        # Features that are as wide as the model are not projected there.
        dim = len(converted["feature_projection.layer_norm.weight"])
        converted["feature_projection.projection.weight"] = torch.eye(dim)
        converted["feature_projection.projection.bias"] = torch.zeros(dim)
    return converted
