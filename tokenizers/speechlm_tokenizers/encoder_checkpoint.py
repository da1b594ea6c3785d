"""Reading encoders that transformers saved: a folder or hub id, whole or in shards.

Only the tensors that are asked for are read, so that half of a large model costs half of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.files import read_json
from speechlm_tokenizers.downloads import check_sha256

CONFIG_NAME = "config.json"
WEIGHTS_PATTERN = "model*.safetensors"
OPTION = "tokenizer.options.sha256"


def open_folder(model: str, example: str) -> Path:
    """The folder of an encoder, downloaded where ``model`` is a hub id.

    Args:
        model: A folder that transformers saved, or a hub id.
        example: A hub id to name where ``model`` is neither.

    Raises:
        CheckpointError: It is neither, the hub does not give it, or it has no safetensors.
    """
    folder = Path(model)
    if not (folder / CONFIG_NAME).is_file():
        if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise CheckpointError(
                f"{model} holds no {CONFIG_NAME}: expected a folder that transformers saved, or a "
                f"hub id such as {example}"
            )
        folder = _download(model)
    if not any(folder.glob(WEIGHTS_PATTERN)):
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS_PATTERN}; download it again, or save it anew by "
            "transformers' save_pretrained"
        )
    return folder


def read_shape(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says.

    Raises:
        CheckpointError: It cannot be read.
    """
    path = folder / CONFIG_NAME
    try:
        values = read_json(path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected keys and values, got a {type(values).__name__}")
    return values


def read_tensors(
    folder: Path,
    wanted: Mapping[str, Tensor],
    rename: Callable[[str], str],
    *,
    sha256: str | None = None,
) -> dict[str, Tensor]:
    """The tensors that a model wants of a checkpoint, as float32.

    Args:
        folder: Of the checkpoint.
        wanted: Names and, for their shapes alone, tensors.
        rename: The model's name of a tensor of the checkpoint; others are left out.
        sha256: What the SHA-256 of the one file of weights must begin with.

    Raises:
        CheckpointError: A file is truncated or another than ``sha256`` says; a tensor is
            missing or of another shape.
        ConfigError: ``sha256`` is no SHA-256, or there are several files.
    """
    paths = sorted(folder.glob(WEIGHTS_PATTERN))
    if sha256 is not None:
        if len(paths) != 1:
            raise ConfigError(
                f"{OPTION} names one file, but there are {len(paths)}: "
                f"{', '.join(path.name for path in paths)}"
            )
        check_sha256(paths[0], sha256, OPTION)
    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                    if (own := rename(name)) in wanted:
                        found[own] = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); download or save it again"
            ) from error
    for name, tensor in wanted.items():
        if name not in found:
            raise CheckpointError(
                f"{folder} lacks the tensor {name}: it is partial, or of another architecture"
            )
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: {name} is {list(found[name].shape)}, but its {CONFIG_NAME} says "
                f"{list(tensor.shape)}; files were mixed up: download it again"
            )
    return found


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        downloaded = snapshot_download(model, allow_patterns=[CONFIG_NAME, WEIGHTS_PATTERN])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} is neither a folder here nor a model that the hub gives: {reason}"
        ) from error
    if not (Path(downloaded) / CONFIG_NAME).is_file():
        raise CheckpointError(f"{model} on the hub holds no {CONFIG_NAME}: it is no encoder")
    return Path(downloaded)
