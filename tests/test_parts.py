import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlm.errors import CheckpointError, FingerprintError
from speechlm.parts import fingerprint, load_part, part_kind, save_part

CONFIG = {"width": 3, "name": "é"}


def tensors() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


def test_a_part_comes_back_as_it_was(tmp_path: Path) -> None:
    save_part(tmp_path / "part", "some-kind", CONFIG, tensors())
    part = load_part(tmp_path / "part", "some-kind")
    assert part.config == CONFIG
    assert part.kind == part_kind(tmp_path / "part") == "some-kind"
    assert part.fingerprint == fingerprint("some-kind", CONFIG, tensors())
    for name, tensor in tensors().items():
        assert torch.equal(part.tensors[name], tensor)


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_keys_does_not_change_a_fingerprint(order: list[str]) -> None:
    def of(keys: list[str]) -> str:
        return fingerprint("k", {k: 1 for k in keys}, {k: torch.tensor(ord(k)) for k in keys})

    assert of(order) == of(sorted(order))


def test_whatever_changes_a_part_changes_its_fingerprint() -> None:
    a, b = tensors().values()
    variants = [
        fingerprint("k", CONFIG, {"a": a, "b": b}),
        fingerprint("l", CONFIG, {"a": a, "b": b}),
        fingerprint("k", {**CONFIG, "width": 4}, {"a": a, "b": b}),
        fingerprint("k", CONFIG, {"a": a.T, "b": b}),
        fingerprint("k", CONFIG, {"a": a.double(), "b": b}),
        fingerprint("k", CONFIG, {"a": a + 1e-6, "b": b}),
        fingerprint("k", CONFIG, {"b": a, "a": b}),
    ]
    assert len(set(variants)) == len(variants)


def test_half_precision_weights_have_a_fingerprint() -> None:
    weights = {"w": torch.ones(3, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    assert fingerprint("k", {}, weights).startswith("k-")


def test_a_folder_without_a_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config.json; expected a folder that spe"):
        load_part(tmp_path, "some-kind")


def test_a_part_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_part(tmp_path / "part", "some-kind", CONFIG, tensors())
    with pytest.raises(CheckpointError, match="holds a 'some-kind', expected a 'other-kind'"):
        load_part(tmp_path / "part", "other-kind")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "some-kind"}', "\x00"])
def test_a_config_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.json (cannot be read|was not written by)"):
        load_part(tmp_path, "some-kind")


def test_truncated_or_missing_weights_are_refused(tmp_path: Path) -> None:
    save_part(tmp_path / "part", "some-kind", CONFIG, tensors())
    weights = tmp_path / "part" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"cannot be read .*; save or download it again"):
        load_part(tmp_path / "part", "some-kind")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read .*; save or download it again"):
        load_part(tmp_path / "part", "some-kind")


def test_weights_or_configuration_that_were_swapped_are_refused(tmp_path: Path) -> None:
    save_part(tmp_path / "part", "some-kind", CONFIG, tensors())
    path = tmp_path / "part" / "config.json"
    saved = json.loads(path.read_text())
    saved["config"]["width"] = 4
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="a file was changed or mixed up"):
        load_part(tmp_path / "part", "some-kind")


def test_a_mismatch_names_both_and_survives_the_way_out_of_a_worker_process() -> None:
    error = FingerprintError(part="the LM", expected="a-1", got="b-2", remedy="train it again")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(each, FingerprintError)
        assert str(each) == "the LM was made for 'a-1', but 'b-2' was given; train it again"
        assert (each.expected, each.got) == ("a-1", "b-2")
