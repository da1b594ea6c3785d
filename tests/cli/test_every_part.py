"""Each tokenizer and vocoder by its name, through the commands that a user has.

Published ones are small checkpoints with random weights in the very formats, so nothing here
says how well they work: only that each can be had, used and looked at in the same way.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_whisper
import soundfile
from small_codecs import (
    encodec_file,
    small_dac,
    small_encodec,
    small_xcodec,
    transformers_folder,
)
from small_encoders import save_encoder
from small_mimi import small_mimi

from speechlm.cli.main import main
from speechlm.data.human import human_clips
from speechlm.data.store import UnitStore
from speechlm.files import read_json
from speechlm.plugins import TOKENIZERS, VOCODERS, load_tokenizer, plugin

pytestmark = pytest.mark.train
if importlib.util.find_spec("fairseq2") is None:
    pytest.skip("training needs fairseq2", allow_module_level=True)

STEPS = [
    *("train.max_steps=2", "train.warmup_steps=1", "train.checkpoint_every=2"),
    *("train.validate_every=2", "segments.batch_size=2", "segments.duration_s=0.2"),
]
SMALL_LM = [
    *("model.num_layers=1", "model.model_dim=16", "model.num_heads=2", "model.num_kv_heads=2"),
    *("train.batch_units=400", "model.max_positions=4096"),
]
LOGMEL = {"num_units": 60, "iterations": 2}
SMALL_VOCOS = {"dim": 16, "num_unit_layers": 1, "num_layers": 1}
CONFORMER = {"num_layers": 2, "model_dim": 24, "ffn_dim": 32, "num_heads": 2, "kernel_size": 5}


def save_whisper(folder: Path) -> Path:
    return small_whisper.save(folder, small_whisper.GLM)


def save_mimi(folder: Path) -> Path:
    small_mimi().save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "ssl-kmeans": lambda folder: save_encoder("hubert", folder),
    "encodec": lambda folder: encodec_file(small_encodec(), folder.with_suffix(".th")),
    "mimi": save_mimi,
    "dac": lambda folder: transformers_folder(small_dac(), folder),
    "xcodec": lambda folder: transformers_folder(small_xcodec(), folder),
    "whisper-vq": save_whisper,
}
"""Published parts: what writes a small checkpoint."""
OPTIONS: dict[str, dict[str, Any]] = {
    "logmel-kmeans": LOGMEL,
    "ssl-kmeans": {"layer": 2, "num_units": 60, "iterations": 2, "window_s": 1.0, "context_s": 0.2},
    "mimi": {"num_codebooks": 3},
    "causal-codec": {
        "dim": 16,
        "encoder_blocks": 1,
        "decoder_unit_blocks": 1,
        "decoder_blocks": 1,
        "num_codebooks": 2,
        "vocab_size": 32,
        "code_dim": 8,
        "codebook_warmup": 1,
    },
    "phone-ctc": {
        "labels": "characters",
        "num_units": 60,
        "bottleneck_layer": 1,
        "window_s": 1.0,
        "context_s": 0.2,
        "quantize_after": 1,
        "encoder": CONFORMER,
    },
    "prosody": {"streams": ["f0", "energy"]},
    "unit-bpe": {"vocab_size": 100},
}
TRAINED = ("causal-codec", "phone-ctc")
ON_ANOTHER = ("prosody", "unit-bpe")
TOKENIZER_NAMES = sorted(MODELS) + sorted(set(OPTIONS) - set(MODELS))
VOCODER_OPTIONS: dict[str, dict[str, Any]] = {
    "unit-vocos": SMALL_VOCOS,
    "unit-hifigan": {"channels": 32, "embedding_dim": 16, "duration_dim": 8},
    "unit-flow": {"dim": 16, "num_layers": 1, "num_heads": 2, "vocos_dim": 16, "vocos_layers": 1},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number, clip in enumerate(list(human_clips("answers").values())[:8]):
        shutil.copy(clip.path, folder)
        split = ("valid", "test", "train", "train")[number % 4]
        rows.append(json.dumps({"audio": clip.path.name, "text": clip.text, "split": split}))
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tokenizer others build on, and its units."""
    run = tmp_path_factory.mktemp("base")
    words = [f"output={run}", f"corpus.path={corpus}", option("tokenizer", LOGMEL)]
    assert main(["fit", *words]) == 0
    assert main(["tokenize", *words, "tokenize.num_workers=1"]) == 0
    return run


def option(section: str, values: dict[str, Any]) -> str:
    return f"{section}.options={json.dumps(values)}"


def named(name: str, folder: Path, base: Path) -> list[str]:
    """What a user says to have a tokenizer."""
    options = dict(OPTIONS.get(name, {}))
    if name in MODELS:
        options["model"] = str(MODELS[name](folder / "model"))
    if name in ON_ANOTHER:
        options["base"] = str(base / "tokenizer")
    return [f"tokenizer.name={name}", option("tokenizer", options)]


def test_none_is_forgotten() -> None:
    assert set(TOKENIZER_NAMES) == set(plugin_names(TOKENIZERS))
    ours = {name for name in plugin_names(VOCODERS) if hasattr(plugin(VOCODERS, name), "training")}
    assert set(VOCODER_OPTIONS) == ours


def plugin_names(group: str) -> list[str]:
    from importlib.metadata import entry_points

    return [
        point.name
        for point in entry_points(group=group)
        if point.value.startswith(("speechlm_tokenizers", "speechlm_vocoders"))
    ]


@pytest.mark.parametrize("name", TOKENIZER_NAMES)
def test_a_tokenizer_by_its_name(name: str, corpus: Path, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"output={run}", f"corpus.path={corpus}", *named(name, tmp_path, base)]
    first = ["train", "train.part=tokenizer", *STEPS] if name in TRAINED else ["fit"]
    assert main([*first, *words]) == 0
    assert main(["tokenize", *words, "tokenize.num_workers=1"]) == 0
    tokenizer = load_tokenizer(run / "tokenizer")
    store = UnitStore.open(run / "units")
    assert len(store) == 8
    assert store.num_codebooks == tokenizer.num_codebooks

    if not hasattr(tokenizer, "default_vocoder"):
        vocoder = ["vocoder.name=unit-vocos", option("vocoder", SMALL_VOCOS)]
        assert main(["train", *words, *vocoder, "train.part=vocoder", *STEPS]) == 0
    recording = next(corpus.glob("*.flac"))
    copy = tmp_path / "copy.wav"
    assert main(["resynthesize", str(run), str(recording), "-o", str(copy)]) == 0
    heard, made = soundfile.info(recording), soundfile.info(copy)
    assert made.duration == pytest.approx(heard.duration, abs=1.5 / tokenizer.frame_rate)

    page = tmp_path / "page"
    small = ["--no-judge", "--num-recordings", "2", "-o", str(page)]
    assert main(["inspect", "tokenizer", str(run), str(corpus), *small]) == 0
    figures = read_json(page / "tokenizer.json")
    assert figures["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert figures["agreement"]["batch"] == 1.0
    assert (page / "tokenizer.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", VOCODER_OPTIONS)
def test_a_vocoder_by_its_name(name: str, corpus: Path, base: Path, tmp_path: Path) -> None:
    words = [f"output={tmp_path}", f"corpus.path={corpus}", f"tokenizer.path={base / 'tokenizer'}"]
    chosen = [f"vocoder.name={name}", option("vocoder", VOCODER_OPTIONS[name])]
    assert main(["tokenize", *words, "tokenize.num_workers=1"]) == 0
    assert main(["train", *words, *chosen, "train.part=vocoder", *STEPS]) == 0
    recording = next(corpus.glob("*.flac"))
    copy = tmp_path / "copy.wav"
    given = ["--vocoder", str(tmp_path / "vocoder"), "-o", str(copy)]
    assert main(["resynthesize", str(base), str(recording), *given]) == 0
    assert soundfile.info(copy).duration == pytest.approx(
        soundfile.info(recording).duration, abs=0.03
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TOKENIZER_NAMES, *VOCODER_OPTIONS])
def test_the_demo_with_a_part_by_its_name(name: str, base: Path, tmp_path: Path) -> None:
    """From a corpus made here to answers: minutes for all of them."""
    words = [f"output={tmp_path / 'run'}", "corpus.num_train_voices=2", "train.max_steps=2"]
    words += ["evaluate.num_questions=2", "evaluate.num_examples=1", "layout.name=delay"]
    words += SMALL_LM
    if name in VOCODER_OPTIONS:
        words += [option("tokenizer", LOGMEL), f"vocoder.name={name}"]
        words += [option("vocoder", VOCODER_OPTIONS[name])]
    else:
        words += named(name, tmp_path, base)
        if not hasattr(plugin(TOKENIZERS, name), "default_vocoder"):
            words += [option("vocoder", SMALL_VOCOS)]
    assert main(["demo", "--short", *words]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "bundle" / "speechlm.json").is_file()
