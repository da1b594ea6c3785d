"""A tokenizer and a vocoder of a third party, trained by the command, killed, resumed, refused."""

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechlm.cli.main import main
from speechlm.config import RunConfig, load_config
from speechlm.errors import CheckpointError, CorpusError, FingerprintError, PluginError
from speechlm.plugins import TOKENIZERS, available, load_tokenizer, load_vocoder
from speechlm.testing import check_tokenizer, check_vocoder

pytestmark = pytest.mark.train
if importlib.util.find_spec("fairseq2") is None:
    pytest.skip("training needs fairseq2", allow_module_level=True)

THIRD_PARTY = Path(__file__).parents[1] / "helpers" / "third_party"
SMALL = [
    *("train.max_steps=20", "train.warmup_steps=2", "train.learning_rate=0.01"),
    *("train.checkpoint_every=5", "train.validate_every=10", "train.report_every=10"),
    *("segments.batch_size=4", "segments.duration_s=0.1"),
    *("tokenizer.name=frame-table", "vocoder.name=frame-table"),
]

KILL_AT = """
import os, signal, sys
from speechlm.config import load_config
from speechlm.training.running import import_fairseq2
import_fairseq2()  # which the recorder needs
from speechlm.training.recorder import RunRecorder
def write(self, record, really=RunRecorder._write):
    really(self, record)
    if record["step"] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
RunRecorder._write = write
from speechlm.training.part_train import train_part
train_part(load_config(overrides=sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(THIRD_PARTY)
    monkeypatch.setenv("PYTHONPATH", str(THIRD_PARTY))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(12):
        time = np.arange(3_000 + 700 * number) / 16_000
        wave = 0.5 * np.sin(2 * math.pi * (100 + 40 * number) * time)
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        split = "valid" if number % 4 == 0 else "test" if number == 11 else "train"
        rows.append(json.dumps({"audio": f"{number}.wav", "split": split, "text": "a tone"}))
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def words(output: Path, corpus: Path, part: str, *more: str) -> list[str]:
    return [f"output={output}", f"corpus.path={corpus}", f"train.part={part}", *SMALL, *more]


def config_of(output: Path, corpus: Path, part: str, *more: str) -> RunConfig:
    return load_config(overrides=words(output, corpus, part, *more))


def records(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "audio_seconds_per_second")
    kept = {
        (line["split"], line["step"]): {k: v for k, v in line.items() if k not in timing}
        for line in lines
    }
    assert len(kept) == len(lines)
    return kept


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and then a vocoder for it, trained by commands that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(THIRD_PARTY)
        assert main(["train", *words(output, corpus, "tokenizer")]) == 0
        assert main(["tokenize", *words(output, corpus, "tokenizer")]) == 0
        assert main(["train", *words(output, corpus, "vocoder")]) == 0
    return output


def test_parts_of_another_package_train_and_keep_the_promises(whole: Path, corpus: Path) -> None:
    assert "frame-table" in available(TOKENIZERS)
    tokenizer = load_tokenizer(whole / "tokenizer")
    vocoder = load_vocoder(whole / "vocoder")
    waves = [torch.randn(n) * 0.3 for n in (1, 160, 1_000, 2_345)]
    check_tokenizer(tokenizer, waves)
    check_vocoder(vocoder, [tokenizer.encode(wave[None])[0] for wave in waves])
    for part in ("tokenizer", "vocoder"):
        seen = records(whole / f"train-{part}")
        assert seen["valid", 20]["loss"] < seen["valid", 10]["loss"]
        assert seen["train", 20]["error"] < 0.7 * seen["train", 1]["error"]
        assert [seen["train", step]["number"] for step in (1, 2, 20)] == [0, 1, 19]


def test_a_trained_part_is_used_by_the_other_commands(
    whole: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words(whole, corpus, "vocoder")]) == 0
    assert "trained already" in capsys.readouterr().err
    recording = str(corpus / "3.wav")
    out = tmp_path / "back.wav"
    assert main(["resynthesize", str(whole), recording, "-o", str(out)]) == 0
    assert soundfile.info(out).frames == -(-soundfile.info(recording).frames // 160) * 160


@pytest.mark.parametrize("part", ["tokenizer", "vocoder"])
def test_a_killed_run_has_the_losses_and_weights_of_one_that_was_not(
    whole: Path, corpus: Path, tmp_path: Path, part: str
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for folder in (part, f"train-{part}"):
        shutil.rmtree(tmp_path / folder)
    asked = words(tmp_path, corpus, part)
    for step in (7, 13):
        killed = subprocess.run(
            [sys.executable, "-c", KILL_AT, str(step), *asked], env=os.environ, check=False
        )
        assert killed.returncode == -signal.SIGKILL
    assert main(["train", *asked]) == 0
    assert records(tmp_path / f"train-{part}") == records(whole / f"train-{part}")
    load = load_tokenizer if part == "tokenizer" else load_vocoder
    assert load(tmp_path / part).fingerprint == load(whole / part).fingerprint


def test_a_checkpoint_of_something_else_is_refused(
    whole: Path, corpus: Path, tmp_path: Path
) -> None:
    from speechlm.training.part_train import train_part

    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "vocoder")
    with pytest.raises(CheckpointError, match=r"made with segments.batch_size=4, but 8 was given"):
        train_part(config_of(tmp_path, corpus, "vocoder", "segments.batch_size=8"))
    (tmp_path / "other").mkdir()
    shutil.copyfile(corpus / "1.wav", tmp_path / "other" / "99.wav")
    with pytest.raises(CorpusError, match="holds no recording of"):
        train_part(config_of(tmp_path, tmp_path / "other", "vocoder"))
    shutil.rmtree(tmp_path / "tokenizer")
    more = ("seed=2", "train.max_steps=2")
    shutil.rmtree(tmp_path / "train-tokenizer")
    train_part(config_of(tmp_path, corpus, "tokenizer", *more))
    with pytest.raises(FingerprintError, match="run 'speechlm tokenize' again"):
        train_part(config_of(tmp_path, corpus, "vocoder"))


def test_a_part_that_is_not_trained_says_what_to_do(whole: Path, corpus: Path) -> None:
    from speechlm.training.part_train import train_part

    with pytest.raises(PluginError, match=r"'logmel-kmeans' is not trained: use 'speechlm fit'"):
        train_part(config_of(whole / "x", corpus, "tokenizer", "tokenizer.name=logmel-kmeans"))


def test_recordings_that_cannot_be_read_are_left_out_and_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechlm.training.part_train import train_part

    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "1.wav").write_bytes(b"no audio at all")
    soundfile.write(tmp_path / "corpus" / "2.wav", np.zeros(16_000), 16_000)
    train_part(config_of(tmp_path / "run", tmp_path / "corpus", "tokenizer"))
    said = capsys.readouterr().err
    assert "left out of the training" in said
    assert "1.wav: not audio" in said
    assert "2.wav: silent" in said
