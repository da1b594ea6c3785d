"""What a run starts from, and what does not fit together: one line each, before training."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from toy_store import FINGERPRINT, NUM_UNITS, recording, write_rows, write_toy_store

from speechlm.config import load_config
from speechlm.data.shards import UnitFormat
from speechlm.data.store import UnitStore, write_store
from speechlm.errors import CheckpointError, CorpusError, SpeechLMError
from speechlm.training.start import Start, choose_language, choose_start
from speechlm.training.train import train

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="makes a text LM with transformers"
)


def start_of(store: Path, *overrides: str, features: torch.Tensor | None = None) -> Start:
    config = load_config(overrides=overrides)
    return choose_start(config, choose_language(config, UnitStore.open(store)), features)


@pytest.mark.parametrize(
    ("num_codebooks", "overrides", "message"),
    [
        (1, ["layout.name=dealy"], "unknown layout 'dealy'; did you mean 'delay'? known: flat, "),
        (1, ["layout.options.colapse=true"], "no option 'colapse'; did you mean 'collapse'?"),
        (2, [], "the layout 'flat' takes a tokenizer of 1 codebook, got one of 2; flattened, "),
        (1, ["layout.name=duplex"], "left out 10 conversations: two channels that differ"),
        (2, ["layout.name=delay", "layout.options.delays=[0]"], "expected 2 delays, got 1: "),
        (1, ["layout.name=interleave-words"], "needs a text tokenizer; set model.text_lm or layou"),
        (1, ["model.head=depth"], "the layout 'flat' has 1; use model.head=parallel, or a layout"),
        (1, ["model.text_lm=nowhere"], "nowhere"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, num_codebooks: int, overrides: list[str], message: str
) -> None:
    write_toy_store(tmp_path / "units", num_codebooks=num_codebooks, num_questions=12)
    with pytest.raises(SpeechLMError) as caught:
        train(load_config(overrides=[f"output={tmp_path}", *overrides]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_without_codebooks_is_refused(tmp_path: Path) -> None:
    none = UnitFormat(
        fingerprint=FINGERPRINT, frame_rate=50.0, vocab_size=NUM_UNITS, num_codebooks=0
    )
    write_store(tmp_path / "units", none, [recording("a", [1])])
    with pytest.raises(SpeechLMError, match="at least 1 codebook, got K = 0"):
        train(load_config(overrides=[f"output={tmp_path}"]))


@needs_transformers
def test_a_store_without_text_is_refused_with_the_count(tmp_path: Path) -> None:
    from toy_text import text_tokenizer

    text_tokenizer().save_pretrained(tmp_path / "text")
    rows = [recording(name, [1, 2], split=split) for name, split in (("a", "train"), ("b", None))]
    write_rows(tmp_path / "units", rows)
    text = [f"layout.text_tokenizer={tmp_path / 'text'}", "layout.name=text-parallel"]
    with pytest.raises(CorpusError, match=r"to train on: left out 2 recordings: no text$"):
        train(load_config(overrides=[f"output={tmp_path}", *text]))


def test_a_text_lm_without_weights_is_refused(tmp_path: Path) -> None:
    write_toy_store(tmp_path / "units", num_questions=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        start_of(tmp_path / "units", f"model.text_lm={tmp_path / 'empty'}")


@needs_transformers
@pytest.mark.parametrize("new_rows", ["normal", "mean", "acoustic"])
def test_new_rows_start_as_asked(tmp_path: Path, new_rows: str) -> None:
    from toy_text import write_text_lm

    text = write_text_lm(tmp_path / "lm").get_input_embeddings().weight
    write_toy_store(tmp_path / "units", num_questions=1)
    asked = [f"model.text_lm={tmp_path / 'lm'}", f"model.new_rows={new_rows}"]
    features = torch.randn(NUM_UNITS, 8, generator=torch.Generator().manual_seed(0))
    start = start_of(tmp_path / "units", *asked, features=features)
    assert start.weights is not None
    assert (start.features is not None) == (new_rows == "acoustic")
    rows = start.weights.model.embed_tokens.weight[-NUM_UNITS:]
    near = bool((rows.mean(dim=0) - text.mean(dim=0)).norm() < 0.5 * text.mean(dim=0).norm())
    assert near == (new_rows == "mean")
    if new_rows == "acoustic":
        with pytest.raises(SpeechLMError, match=r"'acoustic', but the run's tokenizer does not"):
            start_of(tmp_path / "units", *asked)


def test_every_stream_of_the_tokenizers_units_starts_from_what_they_sound_like(
    tmp_path: Path,
) -> None:
    write_toy_store(tmp_path / "one", num_questions=1)
    write_toy_store(tmp_path / "two", num_questions=1, num_codebooks=2)
    features = torch.randn(NUM_UNITS, 8)
    grouped = start_of(tmp_path / "one", "layout.name=grouped", features=features).features
    assert grouped is not None
    assert torch.equal(grouped, features.repeat(3, 1))
    other = start_of(tmp_path / "two", "layout.name=delay", features=features[:-1]).features
    assert other is None
