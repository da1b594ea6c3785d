"""The families of text LMs that Hugging Face's ``transformers`` and speechlm both know.

A family is a way of writing :class:`~speechlm.model.architecture.DecoderConfig` as a
``config.json``, and of naming its tensors. Both spellings of ``config.json`` are read:
``rope_theta`` and ``rope_scaling`` (transformers 4), ``rope_parameters`` (transformers 5).
The first is written, since every version opens it. A key that is absent has the default that
``transformers`` gives it.

Each family is a reader and a writer of its own, one after another: what one of them does can be
read in one place, which is worth the length of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from speechlm.errors import ConfigError
from speechlm.model.architecture import DecoderConfig, RopeScaling

Values = Mapping[str, Any]
"""What a ``config.json`` holds."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}
"""Theirs to ours."""
WRITTEN_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}
"""Ours to theirs, where the names differ."""
ROPES = "default, linear, dynamic, llama3, yarn"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one family's checkpoints are written."""

    model_type: str
    architecture: str
    """The class of ``transformers``."""
    read: Callable[[Values], DecoderConfig]
    """Of a ``config.json``; raises :class:`ConfigError`."""
    write: Callable[[DecoderConfig], dict[str, Any]]
    """As much of a shape as the family can say: reading it back shows what it cannot."""
    prefix: str = "model."
    """What a checkpoint without a head leaves out of its tensors' names."""
    renames: tuple[tuple[str, str], ...] = ()
    """Ours to theirs, parts of tensor names, in order."""
    fused_qkv: str = ""
    """The name that replaces ``q_proj``, ``k_proj`` and ``v_proj``, where they are one matrix
    [heads * 3 * head_dim, D]."""

    def name(self, ours: str) -> str:
        """What the family calls a tensor of :class:`~speechlm.model.decoder.Decoder`."""
        for part, theirs in self.renames:
            ours = ours.replace(part, theirs)
        return ours


def read_config(values: Values) -> tuple[Family, DecoderConfig]:
    """The family and the shape of a ``config.json``.

    Raises:
        ConfigError: The architecture is not known, a key is missing or unusable, or the model
            does something that :class:`~speechlm.model.decoder.Decoder` does not.
    """
    model_type = values.get("model_type")
    family = next((each for each in FAMILIES if each.model_type == model_type), None)
    if family is None:
        known = ", ".join(each.model_type for each in FAMILIES)
        raise ConfigError(
            f"unknown architecture: model_type is {model_type!r}; known: {known} "
            "(llama is also what SmolLM2, TinyLlama and Yi are)"
        )
    if values.get("quantization_config"):
        raise ConfigError(
            "the weights are quantized (quantization_config); use the model they were made of"
        )
    return family, family.read(values)


def fit_family(config: DecoderConfig) -> tuple[Family, dict[str, Any]]:
    """The first family that can say all of a shape, and its ``config.json``.

    Raises:
        ConfigError: None can; the message says what is in the way of the nearest.
    """
    if config.depth is not None:
        raise ConfigError(
            "this decoder has a depth transformer, for which no text LM of transformers has a "
            "place; expected one whose streams are predicted side by side"
        )
    wanted = _essential(config)
    lacks: dict[str, list[str]] = {}
    for family in FAMILIES:
        values = family.write(config)
        try:
            said = family.read(values)
        except ConfigError:
            continue
        if family is LLAMA and config.model_dim % config.num_heads:
            continue  # transformers 5 refuses it, whatever head_dim says; Mistral is the same
        lacks[family.model_type] = [
            f"{field.name}={getattr(wanted, field.name)!r}"
            for field in fields(DecoderConfig)
            if getattr(wanted, field.name) != getattr(said, field.name)
        ]
        if not lacks[family.model_type]:
            return family, values
    nearest = min(lacks, key=lambda name: len(lacks[name]))
    raise ConfigError(
        "no family of transformers fits this decoder; the nearest, "
        f"{nearest}, has no {', '.join(lacks[nearest])}"
    )


def _essential(config: DecoderConfig) -> DecoderConfig:
    """The shape without what does not matter to it: dropout, and rotary options unused."""
    if config.position != "rope":
        config = replace(config, rope_theta=10_000.0, rope_scaling=None, rotary_fraction=1.0)
    if config.rope_scaling is not None:
        rope = _write_rope(config)
        rope["max_position_embeddings"] = config.max_positions
        config = replace(config, rope_scaling=_read_rope(rope)[1])
    return replace(config, dropout=0.0)


def _read_llama(values: Values, **changes: Any) -> DecoderConfig:
    """What Llama, Mistral, Qwen2 and Qwen3 have in common; Llama's defaults."""
    theta, scaling, fraction = _read_rope(values)
    if fraction != 1.0:
        raise ConfigError(f"partial_rotary_factor must be 1 in this family, got {fraction}")
    heads = _need(values, "num_attention_heads")
    bias = bool(_get(values, "attention_bias", False))
    return _build(
        values,
        **{
            "num_heads": heads,
            "num_kv_heads": _get(values, "num_key_value_heads", heads),
            "head_dim": _get(values, "head_dim", 0),
            "ffn_dim": _need(values, "intermediate_size"),
            "max_positions": _get(values, "max_position_embeddings", 2048),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "norm_eps": _get(values, "rms_norm_eps", 1e-6),
            "activation": _activation(_get(values, "hidden_act", "silu")),
            "tie_embeddings": _get(values, "tie_word_embeddings", False),
            "qkv_bias": bias,
            "o_bias": bias,
            "mlp_bias": _get(values, "mlp_bias", False),
            **changes,
        },
    )


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    written = {
        **_write_common(config),
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "hidden_act": WRITTEN_ACTIVATIONS.get(config.activation, config.activation),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        **_write_rope(config),
    }
    return written


def _read_mistral(values: Values) -> DecoderConfig:
    _layer_types(values, False)  # transformers heeds the window alone; a mixture is Ministral's
    return _read_llama(
        values,
        num_kv_heads=_get({"num_key_value_heads": 8, **values}, "num_key_value_heads", None)
        or _need(values, "num_attention_heads"),
        max_positions=_get(values, "max_position_embeddings", 4096 * 32),
        sliding_window=values.get("sliding_window", 4096),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
    )


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
    written = {**_write_llama(config), "sliding_window": config.sliding_window}
    del written["attention_bias"], written["mlp_bias"]
    return written


def _read_qwen(values: Values, **changes: Any) -> DecoderConfig:
    window = values.get("sliding_window", 4096) if values.get("use_sliding_window") else None
    first = _get(values, "max_window_layers", 28)
    layers = _need(values, "num_hidden_layers")
    slides = window is not None and isinstance(first, int) and first < layers
    if slides and first > 0 and not values.get("layer_types"):
        raise ConfigError(
            f"only layers from {first} on slide (max_window_layers); expected all or none"
        )
    return _read_llama(
        values,
        **{
            "num_kv_heads": _get({"num_key_value_heads": 32, **values}, "num_key_value_heads", None)
            or _need(values, "num_attention_heads"),
            "max_positions": _get(values, "max_position_embeddings", 32768),
            "sliding_window": window if _layer_types(values, slides) else None,
            "mlp_bias": False,
            **changes,
        },
    )


def _write_qwen(config: DecoderConfig) -> dict[str, Any]:
    written = _write_llama(config)
    del written["mlp_bias"]
    if config.sliding_window is not None:
        written |= {
            "use_sliding_window": True,
            "sliding_window": config.sliding_window,
            "max_window_layers": 0,
            "layer_types": ["sliding_attention"] * config.num_layers,
        }
    return written


def _write_qwen2(config: DecoderConfig) -> dict[str, Any]:
    written = _write_qwen(config)
    del written["attention_bias"]
    if config.head_dim * config.num_heads == config.model_dim:
        del written["head_dim"]
    return written


def _read_opt(values: Values) -> DecoderConfig:
    width = _need(values, "hidden_size")
    if not _get(values, "do_layer_norm_before", True):
        raise ConfigError(
            "do_layer_norm_before is false (OPT-350m): its norms come after each block, the "
            "decoder's before; use another size of OPT"
        )
    if _get(values, "word_embed_proj_dim", width) != width:
        raise ConfigError(
            f"word_embed_proj_dim ({values['word_embed_proj_dim']}) is not hidden_size ({width}): "
            "the decoder has no projection between embeddings and layers"
        )
    if values.get("_remove_final_layer_norm") or not _get(
        values, "layer_norm_elementwise_affine", True
    ):
        raise ConfigError("expected an OPT with a last norm and with weights in its norms")
    heads = _need(values, "num_attention_heads")
    bias = _get(values, "enable_bias", True)
    return _build(
        values,
        num_heads=heads,
        num_kv_heads=heads,
        ffn_dim=_get(values, "ffn_dim", 3072),
        max_positions=_get(values, "max_position_embeddings", 2048),
        norm="layer",
        norm_eps=1e-5,
        gated=False,
        activation=_activation(_get(values, "activation_function", "relu")),
        position="learned",
        position_offset=2,
        tie_embeddings=_get(values, "tie_word_embeddings", True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )


def _write_opt(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_write_common(config),
        "word_embed_proj_dim": config.model_dim,
        "ffn_dim": config.ffn_dim,
        "activation_function": WRITTEN_ACTIVATIONS.get(config.activation, config.activation),
        "do_layer_norm_before": True,
        "enable_bias": config.qkv_bias,
        "dropout": config.dropout,
    }


def _read_neox(values: Values) -> DecoderConfig:
    theta, scaling, fraction = _read_rope(values, theta="rotary_emb_base", fraction="rotary_pct")
    heads = _need(values, "num_attention_heads")
    bias = _get(values, "attention_bias", True)
    return _build(
        values,
        num_heads=heads,
        num_kv_heads=heads,
        ffn_dim=_need(values, "intermediate_size"),
        max_positions=_get(values, "max_position_embeddings", 2048),
        norm="layer",
        norm_eps=_get(values, "layer_norm_eps", 1e-5),
        gated=False,
        activation=_activation(_get(values, "hidden_act", "gelu")),
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_fraction=fraction,
        parallel_residual=_get(values, "use_parallel_residual", True),
        tie_embeddings=_get(values, "tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=True,
    )


def _write_neox(config: DecoderConfig) -> dict[str, Any]:
    written = {
        **_write_common(config),
        "intermediate_size": config.ffn_dim,
        "hidden_act": WRITTEN_ACTIVATIONS.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias,
        "rotary_pct": config.rotary_fraction,
        "hidden_dropout": config.dropout,
        **_write_rope(config),
    }
    written["rotary_emb_base"] = written.pop("rope_theta")
    return written


def _build(values: Values, **shape: Any) -> DecoderConfig:
    # Dropout is a matter of training, and a text LM of today has none.
    return DecoderConfig.from_dict(
        {
            "vocab_size": _need(values, "vocab_size"),
            "num_layers": _need(values, "num_hidden_layers"),
            "model_dim": _need(values, "hidden_size"),
            "dropout": 0.0,
            **shape,
            "rope_scaling": asdict(shape["rope_scaling"]) if shape.get("rope_scaling") else None,
        }
    )


def _write_common(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _read_rope(
    values: Values, *, theta: str = "rope_theta", fraction: str = "partial_rotary_factor"
) -> tuple[float, RopeScaling | None, float]:
    """Base, scaling and rotated share of a head, of either spelling."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"expected rope_scaling to be keys and values, got {given!r}")
    default_fraction = 0.25 if fraction == "rotary_pct" else 1.0
    base = float(_number(given, "rope_theta", _number(values, theta, 10_000.0)))
    share = _number(values, fraction, default_fraction)
    share = float(_number(given, "partial_rotary_factor", share))
    kind = given.get("rope_type", given.get("type", "default"))
    positions = _get(values, "max_position_embeddings", 2048)
    original = int(_number(given, "original_max_position_embeddings", positions))
    # Within the context that was trained on, which is where max_positions ends, dynamic scaling
    # does nothing.
    if kind in ("default", "dynamic"):
        return base, None, share
    if kind not in ("linear", "llama3", "yarn"):
        raise ConfigError(f"unknown rope_type {kind!r}; known: {ROPES}")
    if kind != "yarn":
        _need(given, "factor")
    factor = float(_number(given, "factor", positions / original))
    if kind == "linear":
        return base, RopeScaling(kind="linear", factor=factor), share
    if kind == "llama3":
        scaling = RopeScaling(
            kind="llama3",
            factor=factor,
            original_max_positions=original,
            low_freq_factor=float(_number(given, "low_freq_factor", 1.0)),
            high_freq_factor=float(_number(given, "high_freq_factor", 4.0)),
        )
        return base, scaling, share
    scaling = RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_positions=original,
        beta_fast=float(_number(given, "beta_fast", 0) or 32),
        beta_slow=float(_number(given, "beta_slow", 0) or 1),
        attention_factor=_yarn_attention(given, factor),
        truncate=bool(_get(given, "truncate", True)),
    )
    return base, scaling, share


def _yarn_attention(given: Values, factor: float) -> float | None:
    if given.get("attention_factor") is not None:
        return float(_number(given, "attention_factor", 1.0))
    over, under = _number(given, "mscale", 0), _number(given, "mscale_all_dim", 0)
    if not over or not under:
        return None
    log = math.log(factor)
    return float((0.1 * over * log + 1) / (0.1 * under * log + 1))


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    written: dict[str, Any] = {"rope_theta": config.rope_theta}
    if scaling is None:
        return written
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        rope["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        rope["low_freq_factor"] = scaling.low_freq_factor
        rope["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        rope |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
        if scaling.attention_factor is not None:
            rope["attention_factor"] = scaling.attention_factor
    return {**written, "rope_scaling": rope}


def _layer_types(values: Values, slides: bool) -> bool:
    """Whether all layers slide, which is what ``slides`` says where ``layer_types`` does not."""
    kinds = set(values.get("layer_types") or ())
    if not kinds:
        return slides
    if len(kinds) > 1 or not kinds <= {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"expected layer_types to be full_attention or sliding_attention throughout, got "
            f"{', '.join(sorted(map(str, kinds)))}"
        )
    return kinds == {"sliding_attention"}


def _activation(name: Any) -> str:
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _get(values: Values, key: str, default: Any) -> Any:
    value = values.get(key)
    return default if value is None else value


def _number(values: Values, key: str, default: float) -> float:
    value = _get(values, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"expected {key} to be a number, got {value!r}")
    return value


def _need(values: Values, key: str) -> Any:
    if values.get(key) is None:
        raise ConfigError(f"expected {key}, got none")
    return values[key]


LLAMA = Family(
    model_type="llama", architecture="LlamaForCausalLM", read=_read_llama, write=_write_llama
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=_read_mistral,
    write=_write_mistral,
)
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read=lambda values: _read_qwen(values, qkv_bias=True, o_bias=False),
    write=_write_qwen2,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read=lambda values: _read_qwen(values, head_dim=_get(values, "head_dim", 128), qk_norm=True),
    write=_write_qwen,
)
OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    read=_read_opt,
    write=_write_opt,
    renames=(
        ("model.", "model.decoder."),
        ("model.decoder.norm.", "model.decoder.final_layer_norm."),
        (".input_layernorm.", ".self_attn_layer_norm."),
        (".post_attention_layernorm.", ".final_layer_norm."),
        (".o_proj.", ".out_proj."),
        (".mlp.up_proj.", ".fc1."),
        (".mlp.down_proj.", ".fc2."),
    ),
)
GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    read=_read_neox,
    write=_write_neox,
    prefix="gpt_neox.",
    renames=(
        ("model.", "gpt_neox."),
        ("gpt_neox.norm.", "gpt_neox.final_layer_norm."),
        ("embed_tokens", "embed_in"),
        ("lm_head", "embed_out"),
        (".self_attn.", ".attention."),
        (".o_proj.", ".dense."),
        (".up_proj.", ".dense_h_to_4h."),
        (".down_proj.", ".dense_4h_to_h."),
    ),
    fused_qkv="query_key_value",
)
FAMILIES = (LLAMA, QWEN2, MISTRAL, QWEN3, OPT, GPT_NEOX)
"""In the order in which :func:`fit_family` tries them: the plainest first."""
