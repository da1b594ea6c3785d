"""Published unit HiFi-GANs, read into the form of :mod:`speechlm_vocoders.hifigan_model`.

Two formats: a JSON configuration beside a ``.pt`` of ``{"generator": state dict}``, as fairseq,
speech-resynthesis, textless and Spirit LM write it, and the vocoder inside a folder of
transformers' SeamlessM4T, whose languages become styles. Nothing is unpickled but tensors.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from speechlm.config import build
from speechlm.errors import CheckpointError, ConfigError
from speechlm.files import read_json
from speechlm_tokenizers.codec_loading import fold_weight_norm
from speechlm_tokenizers.downloads import check_sha256
from speechlm_vocoders.hifigan_model import HiFiGANConfig

REQUIRED = (
    "num_embeddings",
    "embedding_dim",
    "upsample_rates",
    "upsample_kernel_sizes",
    "upsample_initial_channel",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)
"""What a JSON configuration cannot lack."""
SIDE_TABLES = ("f0_quant_embed", "f0_dict", "style_dict")
"""Embeddings of what may come beside units, in the order in which they are concatenated."""
_RENAMES = (
    (r"(?:hifi_gan\.)?conv_pre\.", "first."),
    (r"(?:hifi_gan\.)?conv_post\.", "last."),
    (r"(?:hifi_gan\.)?(?:ups|upsampler)\.(\d+)\.", r"levels.\1.up."),
    (r"(?:dict|unit_embedding)\.", "embeddings.0."),
    (r"(?:spkr|speaker_embedding)\.", "speaker."),
    (r"language_embedding\.", "style."),
    (r"dur_predictor\.conv1\.(?:0\.)?", "durations.first."),
    (r"dur_predictor\.ln1\.", "durations.first_norm."),
    (r"dur_predictor\.conv2\.(?:0\.)?", "durations.second."),
    (r"dur_predictor\.ln2\.", "durations.second_norm."),
    (r"dur_predictor\.proj\.", "durations.head."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A checkpoint of others, in our words."""

    source: Path
    model: HiFiGANConfig
    sample_rate: int
    """Hz."""
    tensors: dict[str, Tensor]
    """By the names of :class:`HiFiGAN`, float32."""
    style_names: tuple[str, ...]
    """As far as the checkpoint knows them; empty otherwise."""


def read_fairseq(checkpoint: Path, config: Path, sha256: str | None = None) -> Published:
    """Read ``{"generator": state dict}`` and its configuration.

    Args:
        checkpoint: The ``.pt``.
        config: The JSON beside it.
        sha256: What the checkpoint's SHA-256 must be, in hexadecimal digits.

    Raises:
        CheckpointError: Either is missing, truncated or of another kind, the checkpoint is
            another file than ``sha256`` says, or the configuration lacks a key.
    """
    values = _read_mapping(config)
    if missing := [key for key in REQUIRED if key not in values]:
        raise CheckpointError(
            f"{config} lacks {', '.join(missing)}: expected the configuration of a unit HiFi-GAN "
            "of fairseq or textless; give the one that was published with the checkpoint"
        )
    state = _read_generator(checkpoint, sha256)
    tables = [name for name in SIDE_TABLES if f"{name}.weight" in state]
    multispeaker = bool(values.get("multispkr"))
    embedder = bool(values.get("embedder_params"))
    if not multispeaker:
        # Some hold a layer for voices that they never use.
        state = {name: each for name, each in state.items() if not name.startswith("spkr.")}
    # The tokenizer of pitches that speech-resynthesis keeps in the same file; its codes come
    # with the units here.
    state = {name: each for name, each in state.items() if not name.startswith("quantizer.")}
    durations = values.get("dur_predictor_params") or {}
    rates = values["upsample_rates"]
    model = _build_model(
        config,
        num_units=values["num_embeddings"],
        side_sizes=[len(state[f"{name}.weight"]) for name in tables],
        embedding_dim=values["embedding_dim"],
        condition_dim=values["embedding_dim"],
        raw_f0=bool(values.get("f0")) and not tables,
        num_speakers=_rows(state, "spkr") if multispeaker and not embedder else 0,
        speaker_dim=values.get("embedder_dim", 256) if multispeaker and embedder else 0,
        num_styles=_rows(state, "style") if values.get("multistyle") else 0,
        repeats=_repeats(values, rates, bool(values.get("f0"))),
        upsample_rates=rates,
        upsample_kernel_sizes=values["upsample_kernel_sizes"],
        channels=values["upsample_initial_channel"],
        resblock_kernel_sizes=values["resblock_kernel_sizes"],
        resblock_dilation_sizes=values["resblock_dilation_sizes"],
        duration_dim=durations.get("var_pred_hidden_dim", 0),
        duration_kernel=durations.get("var_pred_kernel_size", 3),
    )
    for index, name in enumerate(tables, start=1):
        state[f"embeddings.{index}.weight"] = state.pop(f"{name}.weight")
    tensors = _rename(fold_weight_norm(state), len(model.resblock_kernel_sizes))
    if model.speaker_dim:
        tensors["mean_speaker"] = torch.zeros(model.speaker_dim)
    return Published(
        source=checkpoint,
        model=model,
        sample_rate=_integer(config, values, "sampling_rate", 16_000),
        tensors=tensors,
        style_names=(),
    )


def read_seamless(folder: Path) -> Published:
    """Read the vocoder of a SeamlessM4T that transformers saved, the whole model or it alone.

    Raises:
        CheckpointError: The folder is none, or partial.
    """
    config = folder / "config.json"
    values = _read_mapping(config)
    wanted = ("unit_hifi_gan_vocab_size", "unit_embed_dim", "spkr_embed_dim", "lang_embed_dim")
    if missing := [key for key in wanted if key not in values]:
        raise CheckpointError(f"{config} lacks {', '.join(missing)}: it is of no SeamlessM4T")
    if values["spkr_embed_dim"] != values["lang_embed_dim"]:
        raise CheckpointError(
            f"{config}: expected spkr_embed_dim and lang_embed_dim to be the same, got "
            f"{values['spkr_embed_dim']} and {values['lang_embed_dim']}"
        )
    model = _build_model(
        config,
        num_units=values["unit_hifi_gan_vocab_size"],
        embedding_dim=values["unit_embed_dim"],
        condition_dim=values["lang_embed_dim"],
        num_speakers=values.get("vocoder_num_spkrs"),
        num_styles=values.get("vocoder_num_langs"),
        upsample_rates=values.get("upsample_rates"),
        upsample_kernel_sizes=values.get("upsample_kernel_sizes"),
        channels=values.get("upsample_initial_channel"),
        resblock_kernel_sizes=values.get("resblock_kernel_sizes"),
        resblock_dilation_sizes=values.get("resblock_dilation_sizes"),
        duration_dim=values["unit_embed_dim"],
        duration_kernel=values.get("variance_predictor_kernel_size"),
    )
    state = fold_weight_norm(_read_shards(folder))
    tensors = _rename(state, len(model.resblock_kernel_sizes))
    if "first.weight" in tensors:
        # There the language stands before the units, here behind the voice.
        language, others = tensors["first.weight"].tensor_split([model.condition_dim], dim=1)
        tensors["first.weight"] = torch.cat([others, language], dim=1)
    generation = folder / "generation_config.json"
    known = _read_mapping(generation) if generation.is_file() else {}
    languages = known.get("vocoder_lang_code_to_id", {})
    names = {index: name for name, index in languages.items()}
    return Published(
        source=folder,
        model=model,
        sample_rate=_integer(config, values, "sampling_rate", 16_000),
        tensors=tensors,
        style_names=tuple(names.get(i, str(i)) for i in range(model.num_styles)) if names else (),
    )


def _build_model(config: Path, **values: Any) -> HiFiGANConfig:
    try:
        return build(HiFiGANConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{config} cannot be used: {error}") from error


def _repeats(values: Mapping[str, Any], rates: Any, has_pitch: bool) -> int:
    """Frames a unit: with a pitch contour units are repeated to its rate, else never."""
    code_hop = values.get("code_hop_size")
    if not has_pitch or not isinstance(code_hop, int) or not isinstance(rates, list):
        return 1
    samples = 1
    for rate in rates:
        samples *= rate
    return max(1, code_hop // max(1, samples))


def _rows(state: Mapping[str, Tensor], table: str) -> int:
    """How many a table of voices or styles holds; the configurations often leave it out."""
    return len(state.get(f"{table}.weight", ()))


def _rename(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(?:hifi_gan\.)?resblocks\.(\d+)\.convs([12])\.(\d+)\.(.*)", name)
        if found:
            level, block = divmod(int(found[1]), blocks)
            layer = "dilated" if found[2] == "1" else "plain"
            name = f"levels.{level}.blocks.{block}.units.{found[3]}.{layer}.{found[4]}"
        for pattern, replacement in _RENAMES:
            name, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                break
        tensors[name] = tensor.float()
    return tensors


def _integer(path: Path, values: Mapping[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{path}: expected {key} to be a number of Hz, got {value!r}")
    return value


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a JSON configuration") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again") from (
            error
        )
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected keys and values, got a {type(values).__name__}")
    return values


def _read_generator(path: Path, sha256: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the weights of a unit HiFi-GAN")
    if sha256 is not None:
        check_sha256(path, sha256, "vocoder.options.sha256")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is truncated or holds more than tensors, and is not unpickled: expected "
            '{"generator": state dict}; download it again'
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is truncated"
        raise CheckpointError(f"{path} cannot be read ({reason}); download it again") from error
    state = loaded.get("generator") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(
            f'{path} holds no weights under "generator": expected a unit HiFi-GAN as fairseq, '
            "textless or speech-resynthesis saves it"
        )
    return dict(state)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """What belongs to the vocoder, and of a whole model nothing else."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        places = _read_mapping(index).get("weight_map", {})
        names = {place for name, place in places.items() if name.startswith("vocoder.")}
    tensors = {}
    try:
        for name in sorted(names):
            with safe_open(folder / name, framework="pt") as shard:
                keys = list(shard.keys())
                inside = any(key.startswith("vocoder.") for key in keys)
                for key in keys:
                    if not inside or key.startswith("vocoder."):
                        tensors[key.removeprefix("vocoder.")] = shard.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its weights cannot be read ({error})") from error
    return tensors
