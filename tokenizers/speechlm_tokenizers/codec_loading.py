"""Published codecs: finding a checkpoint, checking it, and filling a model with it.

A checkpoint is a folder or hub id as transformers saves it (``config.json`` beside
``model.safetensors`` or ``pytorch_model.bin``), or one file of a state dict. Nothing is
unpickled but tensors.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from speechlm.errors import CheckpointError
from speechlm.files import read_json
from speechlm_tokenizers.downloads import check_sha256

CONFIG_NAME = "config.json"
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
ALIGNMENT = 64
"""Where torch's own allocations begin, bytes."""

Model = TypeVar("Model", bound=nn.Module)


def checkpoint_folder(model: str, example: str) -> Path:
    """The folder of a checkpoint, downloaded where ``model`` is a hub id.

    Args:
        model: A folder that transformers saved, or a hub id.
        example: A hub id to name where ``model`` is neither.

    Raises:
        CheckpointError: It is neither, or the hub does not give it.
    """
    folder = Path(model)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise CheckpointError(
            f"{model} holds no {CONFIG_NAME}: expected a folder that transformers saved, or a hub "
            f"id such as {example}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        downloaded = snapshot_download(model, allow_patterns=[CONFIG_NAME, *WEIGHTS_NAMES])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} is neither a folder here nor a model that the hub gives: {reason}"
        ) from error
    if not (Path(downloaded) / CONFIG_NAME).is_file():
        raise CheckpointError(f"{model} on the hub holds no {CONFIG_NAME}: it is no codec")
    return Path(downloaded)


def checkpoint_config(folder: Path, *model_types: str) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint of transformers.

    Raises:
        CheckpointError: It cannot be read, or is of another architecture.
    """
    path = folder / CONFIG_NAME
    try:
        config = read_json(path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in model_types:
        raise CheckpointError(
            f"{folder} holds a model of type {found!r}, expected {model_types[0]!r}: name another "
            "model, or choose the tokenizer that takes this one"
        )
    return dict(config)


def weights_file(folder: Path) -> Path:
    """The one file that holds a folder's weights.

    Raises:
        CheckpointError: There is none.
    """
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} holds neither {' nor '.join(WEIGHTS_NAMES)}; download it again"
    )


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickled state dict, floating ones as float32.

    Args:
        path: The file.
        sha256: What its SHA-256 must begin with, 8 to 64 hexadecimal digits.

    Raises:
        CheckpointError: It is missing, truncated, another file than ``sha256`` says, or holds
            more than tensors.
        ConfigError: ``sha256`` is none.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the weights of a codec")
    if sha256 is not None:
        check_sha256(path, sha256, "tokenizer.options.sha256")
    try:
        if path.suffix == ".safetensors":
            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is truncated or holds more than tensors, and is not unpickled: expected a "
            "state dict; download it again"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is truncated"
        raise CheckpointError(f"{path} cannot be read ({reason}); download it again") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} holds no state dict: expected tensors by name")
    return {str(name): t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each weight that is kept as magnitude and direction by the weight itself.

    Both ways of naming them are known: ``weight_g`` and ``weight_v``, and those of
    ``torch.nn.utils.parametrizations.weight_norm``.
    """
    folded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"(.*\.)(weight_v|parametrizations\.weight\.original1)", name):
            magnitude = found[2].replace("weight_v", "weight_g").replace("original1", "original0")
            size = tensors.get(found[1] + magnitude)
            if size is None or size.ndim != tensor.ndim:
                raise CheckpointError(
                    f"{name} has no {magnitude} beside it: the checkpoint is partial; download it "
                    "again"
                )
            axes = [axis for axis in range(tensor.ndim) if size.shape[axis] == 1]
            norm = torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)
            folded[f"{found[1]}weight"] = tensor * (size / norm)
        elif not re.search(r"\.(weight_g|parametrizations\.weight\.original0)$", name):
            folded[name] = tensor
    return folded


def aligned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors where memory allocated for them would begin.

    Kernels may add up in another order where it begins elsewhere, as in a file that is mapped
    into memory: a tokenizer would give other units once it was saved and loaded.
    """
    return {
        name: tensor
        if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0
        else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def empty(make: Callable[[], Model]) -> Model:
    """Build a model without weights of its own, for :func:`fill`; weight norm is taken off.

    Raises:
        CheckpointError: No such model can be built: its configuration makes no sense.
    """
    try:
        with torch.device("meta"):
            model = make()
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"no model can be built of the checkpoint's {CONFIG_NAME} ({reason}); download it again"
        ) from error
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def fill(model: Model, tensors: Mapping[str, Tensor], source: object) -> Model:
    """Give a model its weights, all of them and no others; it is then ready for inference.

    Args:
        model: As :func:`empty` gives it.
        tensors: By the model's own names, float32; not copied.
        source: What to call the checkpoint in an error.

    Raises:
        CheckpointError: A tensor is missing, of another shape, or of no use.
    """
    wanted = model.state_dict()
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(
            f"{source} lacks the tensor {missing[0]}{_more(missing)}: it is of another "
            "architecture, or partial"
        )
    if spare := [name for name in tensors if name not in wanted]:
        raise CheckpointError(
            f"{source} holds the tensor {spare[0]}{_more(spare)}, which the architecture has no "
            "place for"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{source}: {name} is {list(tensor.shape)}, expected {list(wanted[name].shape)}: "
                "it is of another architecture"
            )
    model.load_state_dict(dict(tensors), assign=True)
    model.eval()
    model.requires_grad_(False)
    return model


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
