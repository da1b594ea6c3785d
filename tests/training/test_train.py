"""A run as a user sees it: trained, killed, resumed, refused."""

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_store import FINGERPRINT, NUM_UNITS, write_toy_store

from speechlm.config import RunConfig, load_config
from speechlm.errors import CheckpointError, FingerprintError, PartialFailure
from speechlm.model.unit_lm import UnitLM
from speechlm.training import train as training
from speechlm.training.train import train

pytestmark = pytest.mark.train
if importlib.util.find_spec("fairseq2") is None:
    pytest.skip("training needs fairseq2", allow_module_level=True)

SMALL = [
    *("model.num_layers=2", "model.model_dim=32", "model.num_heads=2", "model.num_kv_heads=1"),
    *("model.ffn_dim=48", "model.max_positions=64", "model.dropout=0.1"),
    *("train.batch_units=256", "train.max_steps=30", "train.warmup_steps=3"),
    *("train.validate_every=15", "train.checkpoint_every=5", "train.report_every=10"),
    *("train.unit_dropout=0.1", "train.loss_on=all", "train.learning_rate=0.01"),
    "train.optimizer=muon",
]


KILL_AT = """
import os, signal, sys
from speechlm.config import load_config
from speechlm.training import train
train.import_fairseq2()  # which the recorder needs
from speechlm.training.recorder import RunRecorder
def write(self, record, really=RunRecorder._write):
    really(self, record)
    if record["step"] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
RunRecorder._write = write
train.train(load_config(overrides=sys.argv[2:]))
"""
"""A run that ends itself as soon as a step is on record."""


def config_of(output: Path, *overrides: str) -> RunConfig:
    return load_config(overrides=[f"output={output}", *SMALL, *overrides])


def losses(output: Path) -> dict[tuple[str, int], tuple[float, float]]:
    lines = (output / "train" / "metrics.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    keys = [(record["split"], record["step"]) for record in records]
    assert len(keys) == len(set(keys))
    values = [(record["nll"], record["accuracy"]) for record in records]
    return dict(zip(keys, values, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    write_toy_store(output / "units")
    train(config_of(output))
    return output


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """The same, as if it had been killed after step 25 was saved."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "train" / "lm")
    shutil.rmtree(tmp_path / "train" / "checkpoints" / "step_30")
    return tmp_path


def test_it_learns_and_saves_what_it_learnt(whole: Path) -> None:
    values = losses(whole)
    assert values["valid", 30][0] < 0.7 * values["train", 1][0]
    assert sorted(step for split, step in values if split == "train") == list(range(1, 31))
    assert [step for split, step in values if split == "valid"] == [15, 30]
    lm = UnitLM.load(whole / "train" / "lm")
    assert lm.vocabulary.tokenizer_fingerprint == FINGERPRINT
    assert list((whole / "train" / "tensorboard").glob("events.out.tfevents.*"))
    checkpoints = sorted(p.name for p in (whole / "train" / "checkpoints").glob("step_*"))
    assert checkpoints == ["step_25", "step_30"]


def test_adamw_learns_too_and_otherwise(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "units", tmp_path / "units")
    train(config_of(tmp_path, "train.optimizer=adamw"))
    values = losses(tmp_path)
    assert values["valid", 30][0] < 0.8 * values["train", 1][0]
    assert values["train", 1] == losses(whole)["train", 1]
    assert values["train", 2] != losses(whole)["train", 2]


def test_killed_and_rerun_it_has_the_same_losses(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "units", tmp_path / "units")
    # Once between two checkpoints, and once when a step that is to be saved is on record.
    for step in (8, 20):
        command = [sys.executable, "-c", KILL_AT, str(step), f"output={tmp_path}", *SMALL]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        killed = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert max(number for _, number in losses(tmp_path)) == step
    train(config_of(tmp_path))
    assert losses(tmp_path) == losses(whole)
    expected = UnitLM.load(whole / "train" / "lm")
    assert UnitLM.load(tmp_path / "train" / "lm").fingerprint == expected.fingerprint


def test_a_partial_checkpoint_is_not_taken_for_a_whole_one(begun: Path, whole: Path) -> None:
    checkpoints = begun / "train" / "checkpoints"
    (checkpoints / "step_30.tmp" / "trainer").mkdir(parents=True)
    (checkpoints / "step_30.tmp" / "trainer" / "rank_00.pt").write_bytes(b"half")
    train(config_of(begun))
    assert losses(begun) == losses(whole)


def test_a_finished_run_is_left_as_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "train" / "metrics.jsonl").read_bytes()
    train(config_of(whole))
    assert "is trained already" in capsys.readouterr().err
    assert (whole / "train" / "metrics.jsonl").read_bytes() == before


def test_another_setting_or_store_is_refused(begun: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ffn_dim=48, but 64"):
        train(config_of(begun, "model.ffn_dim=64"))
    shutil.rmtree(begun / "units")
    write_toy_store(begun / "units", seed=1)
    with pytest.raises(FingerprintError, match=r"'units-\w+', but 'units-\w+'"):
        train(config_of(begun))


def test_a_full_disk_ends_it_in_one_line_and_a_rerun_goes_on(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "units", tmp_path / "units")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A checkpoint's largest file is larger than this, and nothing else is.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(PartialFailure, match="run the same command again to go on"):
            train(config_of(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "train" / "checkpoints" / "step_5").exists()
    train(config_of(tmp_path))
    assert losses(tmp_path) == losses(whole)


def test_a_broken_checkpoint_is_named(begun: Path) -> None:
    for file in (begun / "train" / "checkpoints" / "step_25").rglob("*.pt"):
        file.write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"step_25 cannot be read .* delete it"):
        train(config_of(begun))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_goes_on(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    from speechlm.training import recorder

    shutil.copytree(whole / "units", tmp_path / "units")
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("step 20 "):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(recorder, "say", say)
    with pytest.raises(PartialFailure, match="stopped at step 21; run the same command again"):
        train(config_of(tmp_path))
    assert signal.getsignal(number) == before
    assert (tmp_path / "train" / "checkpoints" / "step_21").is_dir()
    train(config_of(tmp_path))
    values = losses(tmp_path)
    del values["valid", 21]  # measured because it stopped there
    assert values == losses(whole)


def test_units_start_where_the_tokenizer_says_they_are_near(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "units", tmp_path / "units")
    (tmp_path / "tokenizer").mkdir()
    features = torch.randn(NUM_UNITS, 8, generator=torch.Generator().manual_seed(3))
    features[1] = features[0]

    class Tokenizer:
        fingerprint = FINGERPRINT
        unit_features = features

    monkeypatch.setattr(training, "load_tokenizer", lambda path: Tokenizer())
    train(config_of(tmp_path, "train.max_steps=1"))
    units = UnitLM.load(tmp_path / "train" / "lm").decoder.model.embed_tokens.weight[7:]
    first, second, third = (units[index].detach() for index in range(3))
    assert (first - second).norm() < 0.9 * (first - third).norm()


def test_gradients_accumulate_over_batches(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "units", tmp_path / "units")
    train(config_of(tmp_path, "train.gradient_accumulation=3", "train.max_steps=4"))
    assert [step for split, step in losses(tmp_path) if split == "train"] == [1, 2, 3, 4]


def test_little_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_toy_store(tmp_path / "units")
    train(config_of(tmp_path))
    output = capfd.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines[0].startswith("training on 119 conversations") or "conversations" in lines[0]
    assert all(line.startswith(("train", "step ", "validation at ")) for line in lines), lines
    assert len(lines) == 1 + 3 + 2 + 1
