"""``fit`` and ``tokenize`` from the command line, on any folder of recordings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speechlm.cli.main import main
from speechlm.data.human import human_clips
from speechlm.data.store import UnitStore

SMALL = "tokenizer.options={num_units: 32, iterations: 3}"


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for clip in list(human_clips("answers").values())[:6]:
        shutil.copy(clip.path, folder)
    return folder


def test_a_folder_is_fitted_on_then_tokenized(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["fit", str(clips), SMALL, "-o", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'tokenizer'}\n"
    assert main(["tokenize", str(clips), "-o", str(run), "tokenize.num_workers=1"]) == 0
    assert capsys.readouterr().out == f"{run / 'units'}\n"
    store = UnitStore.open(run / "units")
    assert len(store) == 6
    assert store.vocab_size == 32


def test_a_bundle_serves_as_the_tokenizer_and_bad_files_decide_the_exit_code(
    clips: Path, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "empty.wav").touch()
    words = ["tokenize", str(clips), "--tokenizer", str(bundle_folder), "-o", str(tmp_path / "run")]
    assert main([*words, "tokenize.num_workers=1"]) == 1
    said = capsys.readouterr().err
    assert "empty.wav" in said
    assert "the file is empty" in said
    assert main([*words, "tokenize.num_workers=1", "--keep-going"]) == 0
    assert len(UnitStore.open(tmp_path / "run" / "units")) == 6


def test_shares_of_several_machines_add_up(
    clips: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    for share in ("1/2", "2/2"):
        words = [str(clips), "--tokenizer", str(bundle_folder), "-o", str(tmp_path / "run")]
        settings = ["tokenize.num_workers=1", "tokenize.shard_size=2"]
        assert main(["tokenize", *words, *settings, "--shard", share]) == 0
    assert len(UnitStore.open(tmp_path / "run" / "units")) == 6


def test_an_empty_folder_is_the_callers_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(tmp_path), "-o", str(tmp_path / "run")]) == 2
    assert "no audio in it" in capsys.readouterr().err


def test_an_unknown_tokenizer_names_the_nearest(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(clips), "tokenizer.name=logmel-kmean", "-o", str(tmp_path / "run")]
    assert main(["fit", *words]) == 2
    assert "did you mean 'logmel-kmeans'?" in capsys.readouterr().err
