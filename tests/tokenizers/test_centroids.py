"""k-means is read from whatever it was saved in, and nothing runs that nobody trusts."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechlm.errors import CheckpointError
from speechlm_tokenizers.centroids import main, read_centroids


@pytest.fixture
def centroids() -> Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def save(kind: str, centroids: Tensor, path: Path) -> None:
    array = centroids.numpy()
    if kind == "safetensors":
        save_file({"centroids": centroids}, path)
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, array)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, cluster_centers_=array, other=np.zeros(3))
    elif kind == "pt":
        torch.save(centroids.double(), path)
    elif kind == "pt of a dictionary":
        torch.save({"n_clusters": 20, "cluster_centers": centroids}, path)
    elif kind == "half":
        save_file({"anything": centroids.half()}, path)


@pytest.mark.parametrize("kind", ["safetensors", "npy", "npz", "pt", "pt of a dictionary", "half"])
def test_files_of_numbers_are_told_by_what_they_hold(
    kind: str, centroids: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "km.bin"
    save(kind, centroids, path)
    found = read_centroids(str(path))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, centroids, atol=1e-3 if kind == "half" else 0, rtol=0)


class Runs:
    """What a pickle can do: touch a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "npy", "pt"])
def test_nothing_runs_without_trust(kind: str, tmp_path: Path) -> None:
    path, touched = tmp_path / "km.bin", tmp_path / "touched"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Runs(touched)))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.array([Runs(touched)], dtype=object), allow_pickle=True)
    else:
        torch.save({"centroids": Runs(touched)}, path)
    with pytest.raises(CheckpointError, match=r"is a pickle, which|holds more than|cannot be read"):
        read_centroids(str(path))
    assert not touched.exists()


def test_scikit_learn_is_read_on_trust_and_converted_once(
    centroids: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joblib = pytest.importorskip("joblib")
    cluster = pytest.importorskip("sklearn.cluster")
    kmeans = cluster.MiniBatchKMeans(20, n_init=1, random_state=0).fit(np.random.rand(400, 6))
    path, converted = tmp_path / "km.bin", tmp_path / "km.safetensors"
    joblib.dump(kmeans, path)
    with pytest.raises(CheckpointError, match=r"--trust .*convert it once: python -m .*centroids"):
        read_centroids(str(path))
    expected = torch.from_numpy(kmeans.cluster_centers_).float()
    assert torch.equal(read_centroids(str(path), trust=True), expected)
    assert main([str(path), str(converted)]) == 2
    assert "is a pickle" in capsys.readouterr().err
    assert main([str(path), str(converted), "--trust"]) == 0
    assert capsys.readouterr().out == f"{converted}: 20 centroids of 6 features\n"
    assert torch.equal(load_file(converted)["centroids"], expected)
    assert torch.equal(read_centroids(str(converted)), expected)


@pytest.mark.parametrize("kind", ["safetensors", "npy", "npz", "pt"])
def test_a_truncated_file_is_refused(kind: str, centroids: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "km.bin"
    save(kind, centroids, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"km.bin (cannot be read|is truncated|holds more)"):
        read_centroids(str(path))


@pytest.mark.parametrize(
    "values",
    [{"centroids": torch.randn(6)}, {"centroids": torch.full((4, 6), torch.nan)}],
)
def test_what_is_no_kmeans_is_refused(values: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(values, tmp_path / "km.safetensors")
    with pytest.raises(CheckpointError, match=r"expected centroids \[units, features\]"):
        read_centroids(str(tmp_path / "km.safetensors"))


def test_centroids_must_be_told_from_other_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.randn(3, 2), "b": torch.randn(3, 2)}, tmp_path / "km.safetensors")
    with pytest.raises(CheckpointError, match=r"holds a, b; expected centroids by one of the name"):
        read_centroids(str(tmp_path / "km.safetensors"))


def test_a_missing_or_changed_file_is_refused(centroids: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "km.safetensors"
    with pytest.raises(CheckpointError, match=r"km.safetensors: no such file"):
        read_centroids(str(path))
    save("safetensors", centroids, path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(read_centroids(str(path), sha256=right), centroids)
    with pytest.raises(CheckpointError, match=r"expected 0123456789 \(sha256\): it is another"):
        read_centroids(str(path), sha256="0123456789")
