"""Every family gives the logits that ``transformers`` gives, before and after export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.errors import ConfigError
from speechlm.model import from_hf, to_hf
from speechlm.model.architecture import DecoderConfig, DepthConfig, RopeScaling
from speechlm.model.cache import KVCache
from speechlm.model.decoder import Decoder
from speechlm.model.hf_families import FAMILIES, fit_family, read_config

transformers = pytest.importorskip("transformers")

VOCAB_SIZE = 61
LENGTH = 40

THREE_HEADS = dict(hidden_size=48, num_attention_heads=3)
LLAMA_SHAPE = dict(
    **THREE_HEADS, intermediate_size=56, num_hidden_layers=2, max_position_embeddings=64
)
SCALED = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-options": {
        "rope_type": "yarn",
        "factor": 2.5,
        "original_max_position_embeddings": 24,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
    },
    "yarn-attention": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
}
NEOX_SHAPE = dict(LLAMA_SHAPE, rotary_pct=0.5)
OPT_SHAPE = dict(
    **THREE_HEADS, word_embed_proj_dim=48, ffn_dim=56, num_hidden_layers=2, dropout=0.0
)
OPT_SHAPE["max_position_embeddings"] = 64

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(LLAMA_SHAPE, num_key_value_heads=3)),
    "llama-tied-one-kv": (
        "Llama",
        dict(LLAMA_SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    ),
    "llama-biases-wide-heads": (
        "Llama",
        dict(
            LLAMA_SHAPE,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=12,
            attention_bias=True,
            mlp_bias=True,
            hidden_act="gelu_pytorch_tanh",
            rope_theta=500_000.0,
            rms_norm_eps=1e-3,
        ),
    ),
    **{
        f"llama-{name}": ("Llama", dict(LLAMA_SHAPE, rope_scaling=scaling))
        for name, scaling in SCALED.items()
    },
    "mistral": ("Mistral", dict(LLAMA_SHAPE, num_key_value_heads=1, sliding_window=None)),
    "mistral-sliding": ("Mistral", dict(LLAMA_SHAPE, num_key_value_heads=1, sliding_window=7)),
    "mistral-indivisible": (
        "Mistral",
        dict(
            LLAMA_SHAPE,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=8,
            sliding_window=None,
        ),
    ),
    "mistral-yarn": (
        "Mistral",
        dict(
            LLAMA_SHAPE,
            num_key_value_heads=3,
            head_dim=16,
            sliding_window=11,
            rope_scaling=SCALED["yarn"],
        ),
    ),
    "qwen2": ("Qwen2", dict(LLAMA_SHAPE, num_key_value_heads=1)),
    "qwen2-tied-yarn": (
        "Qwen2",
        dict(
            LLAMA_SHAPE,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            rope_scaling=SCALED["yarn"],
        ),
    ),
    "qwen2-sliding": (
        "Qwen2",
        dict(
            LLAMA_SHAPE,
            num_key_value_heads=1,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=0,
        ),
    ),
    "qwen3": ("Qwen3", dict(LLAMA_SHAPE, num_key_value_heads=1, head_dim=8)),
    "qwen3-bias-tied": (
        "Qwen3",
        dict(
            LLAMA_SHAPE,
            num_key_value_heads=3,
            head_dim=20,
            attention_bias=True,
            tie_word_embeddings=True,
            rope_scaling=SCALED["linear"],
        ),
    ),
    "qwen3-sliding": (
        "Qwen3",
        dict(
            LLAMA_SHAPE,
            num_key_value_heads=1,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=0,
        ),
    ),
    "opt": ("OPT", OPT_SHAPE),
    "opt-untied-no-bias": (
        "OPT",
        dict(OPT_SHAPE, tie_word_embeddings=False, enable_bias=False, activation_function="gelu"),
    ),
    "gpt-neox": ("GPTNeoX", NEOX_SHAPE),
    "gpt-neox-serial-tied": (
        "GPTNeoX",
        dict(
            NEOX_SHAPE, use_parallel_residual=False, tie_word_embeddings=True, rotary_emb_base=500
        ),
    ),
    "gpt-neox-no-bias-scaled": (
        "GPTNeoX",
        dict(
            NEOX_SHAPE,
            attention_bias=False,
            rotary_pct=1.0,
            hidden_act="gelu_fast",
            rope_scaling=SCALED["linear"],
        ),
    ),
}


def random_lm(family: str, shape: dict[str, Any], vocab_size: int = VOCAB_SIZE) -> Any:
    """A small LM of ``transformers`` with random weights, biases and norms among them."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocab_size, pad_token_id=None, bos_token_id=None, eos_token_id=None, **shape
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wide, so that a wrong rotation, mask or bias is seen in the logits.
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.15)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def random_ids(*shape: int, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))


def close(given: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers_from_both_sides(name: str, tmp_path: Path) -> None:
    family, shape = SHAPES[name]
    reference = random_lm(family, shape)
    reference.save_pretrained(tmp_path / "theirs")
    decoder = from_hf(tmp_path / "theirs")
    ids = random_ids(2, LENGTH)
    with torch.inference_mode():
        expected = reference(ids).logits
        spread = (expected.amax(-1) - expected.amin(-1)).min()
        assert spread > 1, "flat logits would hide an error"
        close(decoder(ids), expected)

        cache = KVCache(decoder.config, 4 * LENGTH)
        regions = [cache.reserve(LENGTH), cache.reserve(LENGTH)]
        first = cache.step([(region, 9) for region in regions])
        parts = [decoder(ids[:, :9].reshape(1, -1), cache=first).view(2, 9, -1)]
        for at in range(9, LENGTH):
            step = cache.step([(region, 1) for region in regions])
            parts.append(decoder(ids[None, :, at], cache=step).transpose(0, 1))
        close(torch.cat(parts, dim=1), expected)

        to_hf(decoder, tmp_path / "ours")
        opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        close(opened(ids).logits, expected)
        again = from_hf(tmp_path / "ours")
        assert again.config == decoder.config
        assert torch.equal(again(ids), decoder(ids))


@st.composite
def random_shapes(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    family = draw(st.sampled_from(["Llama", "Mistral", "Qwen2", "Qwen3", "OPT", "GPTNeoX"]))
    groups, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * kv_heads
    shape: dict[str, Any] = dict(
        hidden_size=heads * draw(st.sampled_from([8, 12, 16])),
        num_attention_heads=heads,
        num_hidden_layers=draw(st.integers(1, 3)),
        max_position_embeddings=64,
        tie_word_embeddings=draw(st.booleans()),
    )
    inner = draw(st.integers(1, 50))
    if family == "OPT":
        width = shape["hidden_size"]
        return family, dict(
            shape, ffn_dim=inner, word_embed_proj_dim=width, enable_bias=draw(st.booleans())
        )
    shape["intermediate_size"] = inner
    scaling = draw(st.sampled_from([None, *SCALED.values()]))
    if scaling is not None:
        shape["rope_scaling"] = dict(scaling)
    shape["hidden_act"] = draw(st.sampled_from(["silu", "gelu", "gelu_new", "relu"]))
    if family == "GPTNeoX":
        shape["rotary_pct"] = draw(st.sampled_from([0.5, 1.0]))
        shape["use_parallel_residual"] = draw(st.booleans())
        return family, dict(shape, attention_bias=draw(st.booleans()))
    shape["num_key_value_heads"] = kv_heads
    if family != "Qwen2":
        shape["head_dim"] = draw(st.sampled_from([4, 6, 16]))
    if family in ("Llama", "Qwen3"):
        shape["attention_bias"] = draw(st.booleans())
    if family == "Llama":
        shape["mlp_bias"] = draw(st.booleans())
    if family == "Mistral":
        shape["sliding_window"] = draw(st.none() | st.integers(1, 50))
    return family, shape


@given(random_shapes())
@settings(deadline=None, max_examples=25)
def test_random_shapes_give_the_logits_of_transformers(made: tuple[str, dict[str, Any]]) -> None:
    family, shape = made
    reference = random_lm(family, shape)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        reference.save_pretrained(Path(folder, "theirs"))
        decoder = from_hf(Path(folder, "theirs"))
        to_hf(decoder, Path(folder, "ours"))
        opened = transformers.AutoModelForCausalLM.from_pretrained(Path(folder, "ours"))
        ids = random_ids(2, LENGTH)
        expected = reference(ids).logits
        close(decoder(ids), expected)
        close(opened(ids).logits, expected)


@pytest.mark.parametrize("name", SHAPES)
def test_an_export_is_of_the_family_it_was_read_from_or_a_plainer_one(name: str) -> None:
    family, shape = SHAPES[name]
    values = random_lm(family, shape).config.to_dict()
    read_as, config = read_config(values)
    written_as, written = fit_family(config)
    same = {"mistral": "llama"}.get(name, read_as.model_type)
    assert written_as.model_type == same
    assert read_config({**written, "model_type": same})[1] == config


def minimal(model_type: str) -> dict[str, Any]:
    """What an old ``config.json`` might hold at the least."""
    return {
        "model_type": model_type,
        "vocab_size": 9,
        "hidden_size": 512,
        "num_attention_heads": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 12,
    }


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_absent_keys_have_the_defaults_of_transformers(model_type: str) -> None:
    sparse = {**minimal(model_type), "word_embed_proj_dim": None}
    filled = transformers.AutoConfig.for_model(**sparse).to_dict()
    assert read_config(minimal(model_type))[1] == read_config(filled)[1]


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_both_spellings_of_rope_are_read(model_type: str) -> None:
    theta = "rotary_emb_base" if model_type == "gpt_neox" else "rope_theta"
    four = {theta: 7e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    five = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e5}}
    if model_type == "gpt_neox":
        four["rotary_pct"] = five["rope_parameters"]["partial_rotary_factor"] = 0.5
    read = [read_config({**minimal(model_type), **spelling})[1] for spelling in (four, five)]
    assert read[0] == read[1]
    assert read[0].rope_theta == 7e5
    assert read[0].rope_scaling == RopeScaling(kind="linear", factor=2.0)


REFUSED = {
    "unknown": ({"model_type": "mamba"}, "unknown architecture.*'mamba'.*known: llama.*gpt_neox"),
    "no type": ({"model_type": None}, "unknown architecture"),
    "key": ({"hidden_size": None}, "expected hidden_size, got none"),
    "type": ({"num_hidden_layers": "many"}, "num_layers: .*integer.*'many'"),
    "heads": ({"num_key_value_heads": 5}, "num_heads .* multiple of num_kv_heads"),
    "rope": ({"rope_scaling": {"type": "longrope"}}, "unknown rope_type 'longrope'; known: def"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "expected factor, got none"),
    "bad factor": ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor to be a number"),
    "rope kind": ({"rope_scaling": "linear"}, "rope_scaling to be keys and values"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    "activation": ({"hidden_act": "xielu"}, "unknown activation 'xielu'; known: silu"),
    "quantized": ({"quantization_config": {"bits": 4}}, "weights are quantized"),
    "mixed": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types to be .* throughout",
    ),
    "some slide": (
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "max_window_layers": 2,
            "num_hidden_layers": 4,
        },
        "only layers from 2 on slide",
    ),
    "ministral": (
        {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types to be .* throughout",
    ),
    "opt 350m": ({"model_type": "opt", "do_layer_norm_before": False}, "OPT-350m.* norms"),
    "opt projected": ({"model_type": "opt", "word_embed_proj_dim": 8}, "word_embed_proj_dim"),
    "opt no norm": ({"model_type": "opt", "_remove_final_layer_norm": True}, "a last norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_decoder_does_not_do_is_refused_in_a_line(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message) as caught:
        read_config({**minimal("llama"), **changes})
    assert "\n" not in str(caught.value)


NO_FAMILY = {
    "depth": (dict(depth=DepthConfig()), "depth transformer"),
    "output bias alone": (dict(o_bias=True), "the nearest, llama, has no o_bias=True"),
    "plain block": (dict(gated=False, activation="relu"), "llama, has no .*gated=False"),
    "sinusoids": (dict(position="sinusoidal"), "has no position='sinusoidal'"),
    "grouped neox": (
        dict(norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True),
        "gpt_neox, has no num_kv_heads=1",
    ),
    "embed scale": (dict(embed_scale=3.0), "has no embed_scale=3.0"),
}


@pytest.mark.parametrize("name", NO_FAMILY)
def test_a_decoder_that_no_family_fits_is_refused_with_the_reason(name: str) -> None:
    changes, message = NO_FAMILY[name]
    shape = dict(vocab_size=9, model_dim=48, num_heads=3, num_kv_heads=1, ffn_dim=12)
    with pytest.raises(ConfigError, match=message) as caught:
        fit_family(DecoderConfig(**{**shape, **changes}))
    assert "\n" not in str(caught.value)


def test_options_of_positions_that_a_decoder_has_not_do_not_matter() -> None:
    shape = dict(vocab_size=9, model_dim=48, num_heads=3, num_kv_heads=3, ffn_dim=12)
    config = DecoderConfig(
        **shape,
        norm="layer",
        gated=False,
        position="learned",
        position_offset=2,
        rope_theta=5.0,
        rope_scaling=RopeScaling(kind="linear", factor=2.0, beta_fast=9.0),
    )
    assert fit_family(config)[0].model_type == "opt"


def test_the_default_shape_of_a_run_is_llama() -> None:
    config = DecoderConfig(vocab_size=505, dropout=0.1)
    assert fit_family(config)[0].model_type == "llama"
    with torch.device("meta"):
        Decoder(config)
