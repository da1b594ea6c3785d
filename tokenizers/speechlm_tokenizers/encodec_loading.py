"""EnCodec's weights: from the ``encodec`` package's files, or as transformers saves them.

Both become the same tensors by the same names, so the same weights give the same tokenizer
whichever source they came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError, PluginError
from speechlm.settings import build
from speechlm_tokenizers.codec_loading import (
    CONFIG_NAME,
    below,
    checkpoint_config,
    checkpoint_folder,
    empty,
    fill,
    fold_weight_norm,
    read_weights,
    weights_file,
)
from speechlm_tokenizers.encodec_model import Architecture, Decoder, Encoder

PUBLISHED = {
    "encodec_24khz": "encodec_24khz-d7cc33bc.th",
    "encodec_48khz": "encodec_48khz-7e698e3e.th",
}
"""The package's two models, and the files that it downloads; each name has its SHA-256's begin."""


def load_encodec(
    model: str, sha256: str | None = None
) -> tuple[Architecture, dict[str, Tensor], list[Tensor]]:
    """Read an EnCodec.

    Args:
        model: A name in :data:`PUBLISHED`, a state dict's file, a folder that holds one, a folder
            that transformers saved, or a hub id.
        sha256: What the SHA-256 of the weights' file must begin with.

    Returns:
        Its sizes; the tensors of encoder and decoder by our names, weight norm folded; and its
        codebooks, float32 [V, D] each.

    Raises:
        CheckpointError: It cannot be had, is damaged, or is no EnCodec.
        ConfigError: It is an EnCodec of a kind that is not supported.
    """
    if (path := _state_dict_file(model)) is not None:
        named = re.search(r"-([0-9a-f]{8,64})\.th$", path.name)
        if named:
            read = read_weights(path, named[1])
        tensors = read if named and sha256 is None else read_weights(path, sha256)
        tensors = _rename(tensors)
        architecture = _infer(tensors, path)
        source: Path = path
    else:
        folder = checkpoint_folder(model, "facebook/encodec_24khz")
        architecture = _translate(checkpoint_config(folder, "encodec"), folder)
        source = weights_file(folder)
        tensors = _rename(read_weights(source, sha256))
    codebooks = _take_codebooks(tensors, architecture, source)
    fill(empty(partial(Encoder, architecture)), below(tensors, "encoder."), source)
    fill(empty(partial(Decoder, architecture)), below(tensors, "decoder."), source)
    return architecture, tensors, codebooks


def _state_dict_file(model: str) -> Path | None:
    """The ``.th`` file that is meant; None where the model is one of transformers."""
    path = Path(model)
    if model in PUBLISHED and not path.exists():
        return _download(PUBLISHED[model])
    if path.is_file() or path.suffix in (".th", ".pt", ".bin"):
        return path
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        files = sorted(path.glob("*.th"))
        if len(files) > 1:
            raise CheckpointError(
                f"{model} holds {len(files)} models, {', '.join(file.name for file in files)}: "
                "name one of them"
            )
        return files[0] if files else None
    return None


def _download(name: str) -> Path:
    """A published file, from where torch keeps such or from where the package has them."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    try:
        from encodec.model import ROOT_URL
    except ImportError as error:
        raise PluginError(
            "the published EnCodec weights are found through a package that is missing: pip "
            "install encodec"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = name.removesuffix(".th").rpartition("-")[2]
    try:
        torch.hub.download_url_to_file(ROOT_URL + name, str(path), prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{ROOT_URL}{name} cannot be downloaded ({error}); put it into {path.parent}, or name "
            "a file or folder that is here"
        ) from error
    return path


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ours for both sources' names; what only training needs is left out."""
    renamed = {}
    for name, tensor in fold_weight_norm(tensors).items():
        if re.search(r"codebook\.(inited|cluster_size|embed_avg)$", name):
            continue
        name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
        name = re.sub(r"\.(conv|convtr)\.norm\.", ".norm.", name)
        name = re.sub(r"\.(conv\.conv|convtr\.convtr|conv)\.(weight|bias)$", r".\2", name)
        renamed[name] = tensor
    return renamed


def _take_codebooks(
    tensors: dict[str, Tensor], architecture: Architecture, source: Path
) -> list[Tensor]:
    """Remove the codebooks from ``tensors``, in their order."""
    found: dict[int, Tensor] = {}
    for name in list(tensors):
        if match := re.fullmatch(r"quantizer\.(?:vq\.)?layers\.(\d+)\._?codebook\.embed", name):
            found[int(match[1])] = tensors.pop(name)
    shape = [architecture.codebook_size, architecture.dimension]
    if not found or sorted(found) != list(range(len(found))):
        raise CheckpointError(f"{source} lacks codebooks: found {sorted(found)}; download it again")
    for index, codebook in found.items():
        if list(codebook.shape) != shape:
            raise CheckpointError(
                f"{source}: codebook {index} is {list(codebook.shape)}, expected {shape}: it is of "
                "another architecture"
            )
    return [found[index] for index in sorted(found)]


def _infer(tensors: Mapping[str, Tensor], path: Path) -> Architecture:
    """Read the sizes off a state dict; what no size tells is as in the package's two models."""
    try:
        first = tensors["encoder.layers.0.weight"]
        codebook = next(t for name, t in tensors.items() if name.endswith("codebook.embed"))
        block = tensors["encoder.layers.1.block.1.weight"]
        count = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder."))
        last = tensors[f"encoder.layers.{count - 1}.weight"]
        convolutions = [
            tensors[name]
            for name in (f"encoder.layers.{index}.weight" for index in range(1, count - 1))
            if name in tensors
        ]
    except (KeyError, StopIteration, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path} is no state dict of an EnCodec: it has neither the encodec package's names "
            "nor transformers'"
        ) from error
    ratios = [weight.shape[2] // 2 for weight in convolutions]
    residual = sum(f"encoder.layers.{index}.block.1.weight" in tensors for index in range(count))
    lstm = sum(
        re.search(r"^encoder\..*\.lstm\.weight_ih_l\d+$", name) is not None for name in tensors
    )
    grouped = "encoder.layers.0.norm.weight" in tensors
    return Architecture(
        sample_rate=48_000 if grouped else 24_000,
        channels=first.shape[1],
        dimension=last.shape[0],
        num_filters=first.shape[0],
        ratios=tuple(reversed(ratios)),
        num_residual_layers=residual // max(1, len(ratios)),
        kernel_size=first.shape[2],
        last_kernel_size=last.shape[2],
        residual_kernel_size=block.shape[2],
        compress=block.shape[1] // block.shape[0],
        num_lstm_layers=lstm,
        conv_shortcut="encoder.layers.1.shortcut.weight" in tensors,
        causal=not grouped,
        group_norm=grouped,
        segment=48_000 if grouped else None,
        normalize=grouped,
        codebook_size=codebook.shape[0],
    )


def _translate(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Sizes as transformers' ``config.json`` has them; it may leave out what is usual."""
    if config.get("pad_mode", "reflect") != "reflect" or config.get("trim_right_ratio", 1.0) != 1.0:
        raise ConfigError(
            f"{folder} pads by {config.get('pad_mode')!r} and trims "
            f"{config.get('trim_right_ratio')} at the right; only 'reflect' and 1.0 are supported"
        )
    rate, chunk = config.get("sampling_rate", 24_000), config.get("chunk_length_s")
    values = {
        "sample_rate": rate,
        "channels": config.get("audio_channels", 1),
        "dimension": config.get("hidden_size", 128),
        "num_filters": config.get("num_filters", 32),
        "ratios": config.get("upsampling_ratios", (8, 5, 4, 2)),
        "num_residual_layers": config.get("num_residual_layers", 1),
        "kernel_size": config.get("kernel_size", 7),
        "last_kernel_size": config.get("last_kernel_size", 7),
        "residual_kernel_size": config.get("residual_kernel_size", 3),
        "dilation_growth": config.get("dilation_growth_rate", 2),
        "compress": config.get("compress", 2),
        "num_lstm_layers": config.get("num_lstm_layers", 2),
        "conv_shortcut": config.get("use_conv_shortcut", True),
        "causal": config.get("use_causal_conv", True),
        "group_norm": config.get("norm_type", "weight_norm") == "time_group_norm",
        "segment": None if chunk is None else int(chunk * rate),
        "normalize": bool(config.get("normalize", False)),
        "codebook_size": config.get("codebook_size", 1024),
    }
    return build(Architecture, values, str(folder / CONFIG_NAME))
