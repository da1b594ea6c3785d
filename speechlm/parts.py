"""A tokenizer, LM or vocoder on disk: ``config.json`` and ``model.safetensors`` in one folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechlm.errors import CheckpointError
from speechlm.files import read_json, write_folder_aside, write_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a part's folder holds."""

    kind: str
    """The plug-in's name, e.g. ``"logmel-kmeans"``."""
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    fingerprint: str


def fingerprint(kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Name a part by its kind, configuration and weights, as ``kind-0123456789abcdef``.

    Keys are hashed in sorted order, so neither a file's nor a dictionary's order matters.
    """
    digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{kind}-{digest.hexdigest()[:16]}"


def save_part(
    folder: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a part, whole or not at all."""
    with write_folder_aside(folder) as aside:
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
            aside / WEIGHTS_NAME,
        )
        write_json(
            aside / CONFIG_NAME,
            {
                "kind": kind,
                "fingerprint": fingerprint(kind, config, tensors),
                "config": dict(config),
            },
        )


def part_kind(folder: Path) -> str:
    """The plug-in's name that a part's folder was saved by."""
    return str(_read_config(folder)["kind"])


def load_part(folder: Path, kind: str) -> Part:
    """Read a part and check that it is whole.

    Raises:
        CheckpointError: Missing, partial, of another kind, or changed since it was saved.
    """
    saved = _read_config(folder)
    if saved["kind"] != kind:
        raise CheckpointError(f"{folder} holds a {saved['kind']!r}, expected a {kind!r}")
    try:
        tensors = load_file(folder / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} cannot be read ({error}); save or download it again"
        ) from error
    actual = fingerprint(kind, saved["config"], tensors)
    if actual != saved["fingerprint"]:
        raise CheckpointError(
            f"{folder} was saved as {saved['fingerprint']!r} but its content is {actual!r}; "
            "a file was changed or mixed up: save or download it again"
        )
    return Part(kind=kind, config=saved["config"], tensors=tensors, fingerprint=actual)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        saved = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no {CONFIG_NAME}; expected a folder that speechlm saved"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(saved, dict) or not {"kind", "fingerprint", "config"} <= saved.keys():
        raise CheckpointError(f"{path} was not written by speechlm: it has no kind and fingerprint")
    return saved
