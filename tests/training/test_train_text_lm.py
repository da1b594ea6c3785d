"""A run that starts from a text LM, whole or with LoRA."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_store import write_toy_store

from speechlm.config import RunConfig, load_config
from speechlm.errors import FingerprintError
from speechlm.model.hf import from_hf, to_hf
from speechlm.model.unit_lm import UnitLM
from speechlm.training.train import train

pytestmark = pytest.mark.train
for needed in ("fairseq2", "peft"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"these runs need {needed}", allow_module_level=True)

from toy_text import write_text_lm  # noqa: E402

SMALL = [
    *("model.dropout=0.1", "train.batch_units=256", "train.max_steps=30", "train.warmup_steps=3"),
    *("train.validate_every=30", "train.checkpoint_every=10", "train.learning_rate=0.01"),
]
LORA = ("train.lora_rank=4", "train.lora_dropout=0.1")


def config_of(output: Path, text_lm: Path, *overrides: str) -> RunConfig:
    start = f"model.text_lm={text_lm}"
    return load_config(overrides=[f"output={output}", start, *SMALL, *overrides])


def records(output: Path) -> list[dict[str, Any]]:
    lines = (output / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def text_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "lm"
    write_text_lm(folder)
    return folder


@pytest.fixture(scope="module", params=["whole", "lora"])
def trained(
    request: pytest.FixtureRequest, text_lm: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[str, ...]]:
    output = tmp_path_factory.mktemp(request.param)
    write_toy_store(output / "units")
    overrides = LORA if request.param == "lora" else ("train.optimizer=muon",)
    train(config_of(output, text_lm, *overrides))
    return output, overrides


def test_it_learns_from_the_text_lm_on(
    trained: tuple[Path, tuple[str, ...]], text_lm: Path
) -> None:
    output, overrides = trained
    values = records(output)
    assert values[-1]["nll"] < 0.8 * values[0]["nll"]
    lm, text = UnitLM.load(output / "train" / "lm"), from_hf(text_lm)
    assert lm.decoder.config.num_layers == text.config.num_layers
    assert lm.vocabulary.text_size == 0  # a layout without text keeps none
    name = "model.layers.1.mlp.down_proj.weight"
    learnt = lm.decoder.state_dict()[name] - text.state_dict()[name]
    # A correction is of few dimensions, and merged it is in the weight.
    rank = int(torch.linalg.matrix_rank(learnt, atol=1e-5))
    assert rank == 4 if overrides is LORA else rank > 4


def test_it_is_reloaded_and_exported_with_the_same_scores(
    trained: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    lm = UnitLM.load(trained[0] / "train" / "lm")
    to_hf(lm.decoder, tmp_path / "exported")
    ids = torch.arange(20).view(2, 10)
    with torch.inference_mode():
        expected = UnitLM.load(trained[0] / "train" / "lm").decoder(ids)
        assert torch.equal(lm.decoder(ids), expected)
        torch.testing.assert_close(from_hf(tmp_path / "exported")(ids), expected)


def test_a_killed_run_goes_on_exactly(
    trained: tuple[Path, tuple[str, ...]], text_lm: Path, tmp_path: Path
) -> None:
    output, overrides = trained
    shutil.copytree(output, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "train" / "lm")
    shutil.rmtree(tmp_path / "run" / "train" / "checkpoints" / "step_30")
    shutil.copytree(text_lm, tmp_path / "moved")
    train(config_of(tmp_path / "run", tmp_path / "moved", *overrides))
    resumed = UnitLM.load(tmp_path / "run" / "train" / "lm")
    assert resumed.fingerprint == UnitLM.load(output / "train" / "lm").fingerprint
    losses, expected = (
        [one["nll"] for one in records(path)] for path in (tmp_path / "run", output)
    )
    assert losses == expected


def test_another_text_lm_is_refused(trained: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    write_text_lm(tmp_path / "other", seed=1)
    with pytest.raises(FingerprintError, match=r"'text-lm-\w+', but 'text-lm-\w+'"):
        train(config_of(trained[0], tmp_path / "other", *trained[1]))


def test_text_rows_are_kept_where_the_layout_has_text(text_lm: Path, tmp_path: Path) -> None:
    write_toy_store(tmp_path / "units")
    layout = "layout.name=interleave-words"
    train(config_of(tmp_path, text_lm, layout, "train.max_steps=1", "train.learning_rate=1e-5"))
    lm, text = UnitLM.load(tmp_path / "train" / "lm"), from_hf(text_lm)
    kept = lm.decoder.model.embed_tokens.weight[list(lm.vocabulary.text_range)]
    assert lm.text_tokenizer is not None
    expected = text.model.embed_tokens.weight[: lm.text_tokenizer.size]
    torch.testing.assert_close(kept, expected, atol=1e-4, rtol=0)
