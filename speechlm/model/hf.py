"""Weights from and to Hugging Face: folders that ``AutoModelForCausalLM`` opens as well.

``config.json`` and the safetensors are read and written directly, one tensor at a time;
``transformers`` is not needed. What each family calls things is in
:mod:`speechlm.model.hf_families`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError, InputError
from speechlm.files import read_json, write_folder_aside, write_json
from speechlm.model.decoder import Decoder
from speechlm.model.hf_families import Family, fit_family, read_config

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
NO_WEIGHTS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
"""Endings of what old checkpoints hold besides weights."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def from_hf(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> Decoder:
    """Read a text LM: Llama (also SmolLM2, TinyLlama, Yi), Mistral, Qwen2, Qwen3, OPT, GPT-NeoX.

    >>> decoder = from_hf("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    >>> logits = decoder(ids)  # int64 [B, S] to float [B, S, V]  # doctest: +SKIP

    Args:
        path_or_id: A folder with ``config.json`` and safetensors, or a hub id.
        dtype: What weights become.
        device: Where they go, one after another: memory holds the model and one tensor more.
        revision: Of the hub's repository: a branch, tag or commit.

    Returns:
        The decoder, in evaluation mode and without dropout. ``max_positions`` is the
        checkpoint's own; up to there dynamic rope scaling is none.

    Raises:
        CheckpointError: Missing, partial, or of a shape that the decoder does not have.
    """
    folder = _model_folder(path_or_id, revision)
    path = folder / CONFIG_NAME
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ConfigError(f"expected keys and values, got a {type(values).__name__}")
        family, config = read_config(values)
        with torch.device("meta"):
            decoder = Decoder(config)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path} holds a value that cannot be used: {error}") from error
    weights = {
        name: tensor.to(device=device, dtype=dtype, copy=True)
        for name, tensor in _read_weights(folder, family, decoder)
    }
    decoder.load_state_dict(weights, assign=True)
    return decoder.eval()


def to_hf(
    decoder: Decoder,
    folder: str | Path,
    *,
    end_id: int | None = None,
    pad_id: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write what ``AutoModelForCausalLM.from_pretrained(folder)`` opens, whole or not at all.

    Args:
        decoder: Any that a family of ``transformers`` can express; the plainest is chosen.
        folder: Replaced where it holds a model already.
        end_id: Which id ends a sequence, for ``generate``.
        pad_id: Which id is padding.
        max_shard_bytes: Weights beyond it go into several files.

    Raises:
        InputError: No family fits the decoder, or the folder holds something else.
    """
    check_target(Path(folder))
    with write_folder_aside(Path(folder)) as aside:
        write_model(decoder, aside, end_id=end_id, pad_id=pad_id, max_shard_bytes=max_shard_bytes)


def check_target(folder: Path) -> None:
    """Refuse to replace what is no model's folder, with an :class:`InputError`."""
    if folder.exists() and not (folder / CONFIG_NAME).is_file():
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; expected a new folder or a model's")
        if any(folder.iterdir()):
            raise InputError(f"{folder} holds other files; expected a new folder or a model's")


def write_model(
    decoder: Decoder,
    folder: Path,
    *,
    end_id: int | None = None,
    pad_id: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """The files of :func:`to_hf`, into a folder that is there; the class that opens it."""
    family, values = fit_family(decoder.config)
    weights = dict(_write_weights(family, decoder))
    dtype = next(iter(weights.values())).dtype
    write_json(
        folder / CONFIG_NAME,
        {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            **values,
            "torch_dtype": str(dtype).removeprefix("torch."),
            # Without these a family's own would hold: 1 and 2 of Llama.
            "bos_token_id": None,
            "eos_token_id": end_id,
            "pad_token_id": pad_id,
        },
    )
    if end_id is not None or pad_id is not None:
        write_json(
            folder / "generation_config.json", {"eos_token_id": end_id, "pad_token_id": pad_id}
        )
    _save_shards(weights, folder, max_shard_bytes)
    return family.architecture


def _model_folder(path_or_id: str | Path, revision: str | None) -> Path:
    folder = Path(path_or_id)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if folder.exists() or len(folder.parts) != 2:
        raise CheckpointError(
            f"{folder} is not a text LM: it holds no {CONFIG_NAME}; expected a folder that "
            "transformers saved, or a hub id such as HuggingFaceTB/SmolLM2-135M"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = [CONFIG_NAME, "model*.safetensors", INDEX_NAME]
    try:
        downloaded = snapshot_download(str(folder), revision=revision, allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{folder} is neither a text LM's folder here nor one that the hub gives: {reason}"
        ) from error
    if not (Path(downloaded) / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} on the hub is not a text LM: it holds no {CONFIG_NAME}")
    return Path(downloaded)


def _index(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    if (folder / WEIGHTS_NAME).is_file():
        with _open(folder / WEIGHTS_NAME) as file:
            return dict.fromkeys(file.keys(), folder / WEIGHTS_NAME)
    path = folder / INDEX_NAME
    if not path.is_file():
        old = next(iter(sorted(folder.glob("*.bin"))), None)
        found = f"; {old.name} is no safetensors file" if old else ""
        raise CheckpointError(
            f"{folder} holds neither {WEIGHTS_NAME} nor {INDEX_NAME}{found}: save it again with "
            "transformers' save_pretrained, or name a revision of the hub that has safetensors"
        )
    try:
        shards = {str(tensor): str(name) for tensor, name in read_json(path)["weight_map"].items()}
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no index of shards: {error!r}") from error
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks {name}, one of {len(names)} shards; download it again"
            )
    return {tensor: folder / name for tensor, name in shards.items()}


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); save or download it again"
        ) from error


def _read_weights(folder: Path, family: Family, decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the decoder by our name, read when it is asked for.

    Raises:
        CheckpointError: One is missing or of another shape, or there are some of no use.
    """
    index = _index(folder)
    # A checkpoint of the body alone names its tensors without the prefix.
    bare = not any(name.startswith(family.prefix) for name in index)
    files: dict[Path, Any] = {}
    used: set[str] = set()
    fused = ("", torch.empty(0))

    def read(theirs: str, shape: list[int]) -> Tensor:
        given = theirs.removeprefix(family.prefix) if bare else theirs
        if given not in index:
            raise CheckpointError(f"{folder} lacks the tensor {given}; download it again")
        used.add(given)
        path = index[given]
        try:
            if path not in files:
                files[path] = _open(path)
            tensor: Tensor = files[path].get_tensor(given)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} does not give the tensor {given} ({error}); download it again"
            ) from error
        if list(tensor.shape) != shape:
            raise CheckpointError(
                f"{path}: {given} is {list(tensor.shape)}, but {CONFIG_NAME} asks for {shape}"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: expected {given} to be floating-point, got {tensor.dtype}"
            )
        return tensor

    for ours, parameter in decoder.state_dict().items():
        shape = list(parameter.shape)
        projection = next((p for p in PROJECTIONS if f".{p}." in ours), None)
        if not family.fused_qkv or projection is None:
            yield ours, read(family.name(ours), shape)
            continue
        name = family.name(ours).replace(projection, family.fused_qkv)
        if fused[0] != name:
            fused = (name, read(name, [3 * shape[0], *shape[1:]]))
        # [heads * 3 * head_dim, ...]: each head's query, key and value stand together.
        heads = fused[1].view(decoder.config.num_heads, 3, -1, *shape[1:])
        yield ours, heads[:, PROJECTIONS.index(projection)].flatten(0, 1)

    spare = [
        name
        for name in sorted(index.keys() - used)
        if not name.endswith(NO_WEIGHTS)
        and not (decoder.lm_head is None and name == family.name("lm_head.weight"))
    ]
    if spare:
        raise CheckpointError(
            f"{folder} holds {len(spare)} tensors that {CONFIG_NAME} does not speak of, such as "
            f"{spare[0]}; expected a plain {family.architecture}"
        )


def _write_weights(family: Family, decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by the family's name, on the CPU."""
    weights = decoder.state_dict()
    with torch.device("meta"):
        plain = Decoder(decoder.config).state_dict()
    if plain.keys() != weights.keys():
        other = min(plain.keys() ^ weights.keys())
        raise InputError(
            f"the decoder's tensors are not its configuration's: {other}; expected one as it was "
            "trained or loaded, not one made ready to decode"
        )
    for ours, tensor in weights.items():
        if family.fused_qkv and ".q_proj." in ours:
            parts = [weights[ours.replace("q_proj", projection)] for projection in PROJECTIONS]
            heads = [p.view(decoder.config.num_heads, -1, *p.shape[1:]) for p in parts]
            tensor = torch.stack(heads, dim=1).flatten(0, 2)
            name = family.name(ours).replace("q_proj", family.fused_qkv)
        elif family.fused_qkv and any(f".{p}." in ours for p in PROJECTIONS):
            continue
        else:
            name = family.name(ours)
        yield name, tensor.detach().cpu().contiguous()


def _save_shards(weights: dict[str, Tensor], folder: Path, max_shard_bytes: int) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
    )
    for file, names in split.filename_to_tensors.items():
        # transformers asks for the format.
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX_NAME, index)
