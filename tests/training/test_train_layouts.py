"""Any layout and head trains on a store of as many streams; text layouts on one with text."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from toy_store import recording, write_rows, write_toy_store

from speechlm.config import RunConfig, load_config
from speechlm.model.unit_lm import UnitLM
from speechlm.training.train import train

pytestmark = pytest.mark.train
if importlib.util.find_spec("fairseq2") is None:
    pytest.skip("training needs fairseq2", allow_module_level=True)

SMALL = [
    *("model.num_layers=2", "model.model_dim=32", "model.num_heads=2", "model.num_kv_heads=1"),
    *("model.ffn_dim=48", "model.max_positions=64", "model.dropout=0.0"),
    *("model.depth.num_layers=1", "model.depth.dim=16", "model.depth.num_heads=2"),
    *("model.depth.num_kv_heads=1", "model.depth.ffn_dim=24"),
    *("train.batch_units=256", "train.max_steps=30", "train.warmup_steps=3"),
    *("train.validate_every=30", "train.checkpoint_every=30", "train.learning_rate=0.01"),
    *("train.optimizer=muon", "train.loss_on=all", "train.speech_fraction=0.2"),
]


def run(output: Path, *overrides: str) -> UnitLM:
    """Train, and check that what is validated on is better known than at the first step."""
    config: RunConfig = load_config(overrides=[f"output={output}", *SMALL, *overrides])
    train(config)
    lines = (output / "train" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["split"] == "valid"
    assert records[-1]["nll"] < 0.8 * records[0]["nll"]
    lm = UnitLM.load(output / "train" / "lm")
    assert lm.layout.name == config.layout.name
    rows = [len(record.get("row_nll", [0])) for record in records]
    assert set(rows) == {lm.layout.num_rows}
    return lm


@pytest.mark.parametrize(
    ("num_codebooks", "layout", "head"),
    [
        (2, "flattened", "parallel"),
        (2, "coarse-first", "parallel"),
        *((2, layout, head) for layout in ("parallel", "delay") for head in ("parallel", "depth")),
        *((1, "grouped", head) for head in ("parallel", "depth")),
    ],
)
def test_units_of_any_layout_are_learnt(
    tmp_path: Path, num_codebooks: int, layout: str, head: str
) -> None:
    write_toy_store(tmp_path / "units", num_codebooks=num_codebooks)
    lm = run(tmp_path, f"layout.name={layout}", f"model.head={head}")
    assert (lm.decoder.depth is not None) == (head == "depth")


def test_a_depth_transformer_of_shared_weights_is_learnt(tmp_path: Path) -> None:
    write_toy_store(tmp_path / "units", num_codebooks=2)
    shared = ("per_step_weights=false", "rope=true", "first_from_body=true")
    options = [f"model.depth.{option}" for option in (*shared, "shared_embeddings=true")]
    run(tmp_path, "layout.name=parallel", "model.head=depth", *options)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from toy_text import text_tokenizer

    folder = tmp_path_factory.mktemp("text")
    text_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("num_codebooks", "layout"),
    [
        (1, "interleave-words"),
        (1, "interleave-chunks"),
        (1, "chain"),
        (2, "text-parallel"),
        (2, "text-parallel timed"),
    ],
)
def test_text_is_learnt_with_units(
    tmp_path: Path, tokenizer_folder: Path, num_codebooks: int, layout: str
) -> None:
    write_toy_store(tmp_path / "units", num_codebooks=num_codebooks)
    name, _, timed = layout.partition(" ")
    options = ["layout.options.timed=true"] if timed else []
    text = f"layout.text_tokenizer={tokenizer_folder}"
    lm = run(tmp_path, f"layout.name={name}", text, *options)
    assert lm.text_tokenizer is not None
    tokens = lm.text_tokenizer.encode("what is seven")
    assert lm.vocabulary.ids_to_text(lm.vocabulary.text_to_ids(tokens)).tolist() == [1, 2, 9]
    assert lm.vocabulary.text_fingerprint == lm.text_tokenizer.fingerprint


@pytest.mark.parametrize("text", [False, True])
def test_two_speakers_are_learnt_side_by_side(
    tmp_path: Path, tokenizer_folder: Path, text: bool
) -> None:
    rows = []
    for number in range(24):
        word = number // 4  # each is asked in both splits
        asked = [1] * 5 + [word + 20] * 5 + [1] * 10
        said = [2] * 12 + [word + 30] * 6 + [2] * 2
        split = "valid" if number % 4 == 0 else "train"
        model = f"{number}.model"
        rows.append(recording(f"{number}.user", asked, split=split, reply=model))
        rows.append(recording(model, said, split=split, text="seven"))
    write_rows(tmp_path / "units", rows)
    options = [f"layout.options.text={text}", f"layout.text_tokenizer={tokenizer_folder}"]
    lm = run(tmp_path, "layout.name=duplex", "train.max_steps=60", *options)
    assert (lm.text_tokenizer is not None) == text
    assert len(lm.layout.row_ids(lm.vocabulary)) == 2 + text


def test_rows_without_text_are_counted_and_said(
    tmp_path: Path, tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    units = torch.arange(12).tolist()
    spoken = [
        recording(f"{split}-{number}", units, split=split, text="one two three")
        for split in ("train", "valid")
        for number in range(4)
    ]
    silent = [recording(f"silent-{number}", units) for number in range(3)]
    long = [recording("long", units * 20, text="four")]
    write_rows(tmp_path / "units", [*spoken, *silent, *long])
    run(tmp_path, "layout.name=interleave-words", f"layout.text_tokenizer={tokenizer_folder}")
    said = capfd.readouterr().err
    assert "train: left out 3 recordings: no aligned words\n" in said
    assert "train: left out 1 recordings: longer than 64 LM positions" in said
