"""What a run refuses before it needs fairseq2."""

import sys
from pathlib import Path

import pytest
from toy_store import write_toy_store

from speechlm.config import RunConfig, load_config
from speechlm.errors import FingerprintError, PluginError
from speechlm.training import train as training
from speechlm.training.train import train


def config_of(output: Path) -> RunConfig:
    return load_config(overrides=[f"output={output}"])


def test_missing_fairseq2_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy_store(tmp_path / "units")
    monkeypatch.setitem(sys.modules, "fairseq2", None)
    with pytest.raises(PluginError, match=r"pip install 'speechlm\[train\]'"):
        train(config_of(tmp_path))


def test_a_tokenizer_that_is_not_the_stores_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy_store(tmp_path / "units")
    (tmp_path / "tokenizer").mkdir()

    class Other:
        fingerprint = "toy-tokenizer-02"

    monkeypatch.setattr(training, "load_tokenizer", lambda path: Other())
    with pytest.raises(FingerprintError, match=r"'toy-tokenizer-01', but 'toy-tokenizer-02'"):
        train(config_of(tmp_path))
