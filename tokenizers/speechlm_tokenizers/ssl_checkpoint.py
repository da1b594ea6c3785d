"""Reading encoders for ``ssl-kmeans``: transformers' folders and hub ids, fairseq2's hub.

Only the tensors up to the chosen layer are read, from safetensors or from a pickled state dict,
of which nothing but tensors is unpickled.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.files import read_json
from speechlm_tokenizers.codec_loading import fold_weight_norm
from speechlm_tokenizers.downloads import check_sha256
from speechlm_tokenizers.encoder_checkpoint import CONFIG_NAME, read_shape
from speechlm_tokenizers.ssl_fairseq2 import FAIRSEQ2, load_fairseq2
from speechlm_tokenizers.ssl_features import (
    FAMILIES,
    LOG_MEL,
    Encoder,
    EncoderConfig,
    check_layer,
    weight_names,
)

EXTRACTOR_NAME = "preprocessor_config.json"
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Files of weights, the preferred ones first."""
PREFIXES = ("hubert.", "wav2vec2.", "wavlm.", "data2vec_audio.", "wav2vec2_bert.")
"""What a model with a head puts before the names of its encoder's tensors."""


def load_encoder(
    model: str,
    layer: int,
    *,
    revision: str | None = None,
    normalize: bool | None = None,
    sha256: str | None = None,
) -> Encoder:
    """Open an encoder up to one of its layers.

    Args:
        model: A folder that transformers saved, a hub id, or ``fairseq2:NAME`` for a model of
            fairseq2's hub.
        layer: 0 for what enters the first layer, L for what leaves the L-th.
        revision: Of the hub's repository: a branch, tag or commit.
        normalize: Whether recordings are normalized; None for what the checkpoint says.
        sha256: What the SHA-256 of the one file of weights must begin with.

    Raises:
        CheckpointError: Missing, partial, changed, or of an architecture that is not known.
        ConfigError: There is no such layer.
        PluginError: A package is missing.
    """
    if model.startswith(FAIRSEQ2):
        if sha256 is not None or revision is not None:
            raise ConfigError(
                f"{model}: fairseq2 reads its files itself; leave tokenizer.options.sha256 and "
                "tokenizer.options.revision out"
            )
        return load_fairseq2(model.removeprefix(FAIRSEQ2), layer, normalize)
    folder = _open_folder(model, revision)
    family, settings = _settings(folder)
    check_layer(model, layer, settings["num_hidden_layers"])
    config = EncoderConfig(
        family=family,
        shape={key: settings[key] for key in FAMILIES[family]},
        num_layers=layer,
        normalize=_normalizes(folder, family) if normalize is None else normalize,
    )
    files = _weight_files(folder)
    if sha256 is not None:
        if len(files) != 1:
            raise ConfigError(
                f"tokenizer.options.sha256 is of one file, but {folder} holds its weights in "
                f"{len(files)}; leave it out"
            )
        check_sha256(files[0], sha256, "tokenizer.options.sha256")
    return Encoder(config, _read_weights(files, weight_names(config)))


def _open_folder(model: str, revision: str | None) -> Path:
    folder = Path(model)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise CheckpointError(
            f"{model} holds no {CONFIG_NAME}: expected a folder that transformers saved, or a hub "
            "id such as facebook/hubert-base-ls960"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    for weights in WEIGHTS:
        wanted = [CONFIG_NAME, EXTRACTOR_NAME, weights]
        try:
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{model} is neither a folder here nor a model that the hub gives: {reason}"
            ) from error
        if any(folder.glob(weights)):
            break
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{model} on the hub holds no {CONFIG_NAME}: it is no encoder")
    return folder


def _settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The family of a checkpoint, and all its settings, defaults included."""
    values = read_shape(folder)
    family = values.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{folder} holds a model of type {family!r}; expected one of {', '.join(FAMILIES)}"
        )
    from transformers import AutoConfig

    try:
        settings = AutoConfig.for_model(**values).to_dict()
    except Exception as error:  # whatever a value that makes no sense leads to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{folder / CONFIG_NAME} holds a value that cannot be used: {reason}"
        ) from error
    return str(family), settings


def _normalizes(folder: Path, family: str) -> bool:
    """Whether recordings are normalized before the encoder reads them."""
    path = folder / EXTRACTOR_NAME
    if family == LOG_MEL or not path.is_file():
        return family == LOG_MEL
    try:
        return bool(read_json(path).get("do_normalize", True))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error


def _weight_files(folder: Path) -> list[Path]:
    for pattern in WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise CheckpointError(f"{folder} holds neither {' nor '.join(WEIGHTS)}; download it again")


def _read_weights(files: list[Path], wanted: list[str]) -> dict[str, Tensor]:
    """The tensors of an encoder by its own names, weight norm taken off."""
    # Of weights that are kept as magnitude and direction, both.
    stems = {name.removesuffix(".weight") for name in wanted} | set(wanted)
    found: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in _tensors_of(path):
            prefix = next((p for p in PREFIXES if name.startswith(p)), "")
            own = name.removeprefix(prefix)
            stem = re.sub(r"\.(weight_[gv]|parametrizations\.weight\.original[01])$", "", own)
            if own in stems or stem in stems:
                found[own] = tensor
    return fold_weight_norm(found)


def _tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    with explain_truncation(path):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                    yield name, file.get_tensor(name)
            return
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        yield from tensors.items()


@contextmanager
def explain_truncation(path: Path) -> Iterator[None]:
    """Say of a file that cannot be read that it cannot, with a CheckpointError."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is truncated or holds more than tensors, and is not unpickled; expected a "
            "state dict: download it again"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, ConfigError | CheckpointError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is truncated"
        raise CheckpointError(
            f"{path} cannot be read ({reason}); download or save it again"
        ) from error
