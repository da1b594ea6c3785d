"""k-means that others fitted, read from whatever they saved them in.

safetensors, ``.npy`` and tensors in a ``.pt`` hold numbers alone. scikit-learn's are pickles,
which can run any program when they are read: only on demand, once, to be kept as numbers::

    python -m speechlm_tokenizers.centroids km.bin km.safetensors --trust
"""

from __future__ import annotations

import argparse
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechlm.errors import CheckpointError, PluginError, SpeechLMError
from speechlm.files import write_aside
from speechlm_tokenizers.downloads import check_sha256, fetch
from speechlm_tokenizers.ssl_checkpoint import explain_truncation
from speechlm_tokenizers.ssl_quantizers import QuantizerKind, feed_forward_tensors

NAMES = ("centroids", "cluster_centers_", "cluster_centers", "codebook")
"""What centroids are called among other values."""


def read_centroids(
    source: str, *, trust: bool = False, sha256: str | None = None, sha256_name: str = "sha256"
) -> Tensor:
    """Read centroids, float32 [V, D].

    Args:
        source: A path or address: safetensors, ``.npy``, ``.npz``, ``.pt`` or, with ``trust``,
            a pickle of joblib or scikit-learn. What a file is shows in its first bytes.
        trust: Whether to read a pickle, and so run the program that it may be.
        sha256: What the SHA-256 of the file must begin with.
        sha256_name: What says so, for the error.

    Raises:
        CheckpointError: Missing, truncated, changed, a pickle without ``trust``, or no k-means.
        PluginError: scikit-learn is needed and not installed.
    """
    kind, tensors = read_quantizer(source, trust=trust, sha256=sha256, sha256_name=sha256_name)
    if kind != "k-means":
        raise CheckpointError(f"{source} holds a {kind} quantizer; expected a k-means")
    return tensors["centroids"]


def read_quantizer(
    source: str, *, trust: bool = False, sha256: str | None = None, sha256_name: str = "sha256"
) -> tuple[QuantizerKind, dict[str, Tensor]]:
    """Read a quantizer, see :func:`read_centroids`: which kind it is, and its tensors.

    Beside centroids that is the feed-forward quantizer of Spirit LM.
    """
    path = fetch(source)
    if sha256 is not None:
        check_sha256(path, sha256, sha256_name)
    values = read_values(path, trust=trust)
    if (tensors := feed_forward_tensors(values, path)) is not None:
        return "feed-forward", tensors
    return "k-means", {"centroids": _checked(_centroids_of(values, path), path)}


def read_values(path: Path, *, trust: bool = False) -> Any:
    """Whatever a file of numbers holds, by what its first bytes say it is.

    Raises:
        CheckpointError: It is truncated, or a pickle without ``trust``.
        PluginError: scikit-learn is needed and not installed.
    """
    with path.open("rb") as file:
        head = file.read(9)
    with explain_truncation(path):
        if head.startswith(b"\x93NUMPY"):
            return np.load(path, allow_pickle=False)
        if head.startswith(b"PK"):
            try:
                names = zipfile.ZipFile(path).namelist()
            except zipfile.BadZipFile as error:
                raise ValueError("it is truncated") from error
            if all(name.endswith(".npy") for name in names):
                return dict(np.load(path, allow_pickle=False))
            if not trust:
                return _torch_load(path)
            return torch.load(path, map_location="cpu", weights_only=False)
        if head[8:9] == b"{":
            return load_file(path)
    if not trust:
        raise CheckpointError(
            f"{path} is a pickle, which could run any program, and is not read; if you trust "
            "whoever made it, give --trust (tokenizer.options.trust=true), or convert it once: "
            f"python -m speechlm_tokenizers.centroids {path} km.safetensors --trust"
        )
    return _unpickle(path)


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which could run any program, and is not read; if "
            "you trust whoever made it, give --trust (tokenizer.options.trust=true)"
        ) from error


def _unpickle(path: Path) -> Any:
    """What joblib or pickle saved, whatever program that runs."""
    try:
        import joblib  # type: ignore[import-untyped]
    except ImportError as error:
        raise PluginError(
            f"{path} was saved by scikit-learn, which is not installed: run "
            "pip install 'speechlm[sklearn]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of having been saved by another version
            return joblib.load(path)
    except ModuleNotFoundError as error:
        raise PluginError(
            f"{path} was saved by a package that is not installed or has changed since: {error}; "
            "run pip install 'speechlm[sklearn]', or convert it where it can be read"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{path} cannot be read ({reason}); download it again") from error


def _centroids_of(values: Any, path: Path) -> Any:
    """The one array of centroids in what a file holds."""
    if isinstance(values, Mapping):
        for name in NAMES:
            if name in values:
                return values[name]
        if len(values) == 1:
            return next(iter(values.values()))
        raise CheckpointError(
            f"{path} holds {', '.join(map(str, list(values)[:5]))}; expected centroids by one of "
            f"the names {', '.join(NAMES)}"
        )
    found = getattr(values, "cluster_centers_", values)
    if not isinstance(found, np.ndarray | Tensor):
        raise CheckpointError(
            f"{path} holds a {type(found).__name__}; expected the centroids of a k-means"
        )
    return found


def _checked(found: Any, path: Path) -> Tensor:
    """Centroids as float32 [V, D]."""
    centroids = torch.as_tensor(np.asarray(found)).float().contiguous()
    if centroids.ndim != 2 or len(centroids) < 2 or not torch.isfinite(centroids).all():
        raise CheckpointError(
            f"{path} holds {list(centroids.shape)} numbers, or some that are none; expected "
            "centroids [units, features]"
        )
    return centroids


def main(words: Sequence[str] | None = None) -> int:
    """Convert a k-means to safetensors."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlm_tokenizers.centroids",
        description="Convert a k-means to safetensors, which holds numbers and no program.",
    )
    parser.add_argument("source", help="path or address of the k-means")
    parser.add_argument("target", type=Path, help="the file to write, *.safetensors")
    parser.add_argument("--trust", action="store_true", help="read a pickle; it may run a program")
    parser.add_argument("--sha256", help="of the source")
    args = parser.parse_args(words)
    try:
        centroids = read_centroids(args.source, trust=args.trust, sha256=args.sha256)
    except SpeechLMError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with write_aside(args.target) as aside:
        save_file({NAMES[0]: centroids}, aside)
    print(f"{args.target}: {len(centroids)} centroids of {centroids.shape[1]} features")
    return 0


if __name__ == "__main__":
    sys.exit(main())
