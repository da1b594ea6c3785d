"""Recordings for a fit: drawn once, read when they are heard, and not again after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechlm.cli.main import main
from speechlm.config import CorpusConfig, RunConfig, TokenizerConfig
from speechlm.data import fitting
from speechlm.data.corpus import Recording, open_corpus
from speechlm.data.fitting import CorpusWaves, fit_tokenizer
from speechlm.data.human import human_clips
from speechlm.errors import CorpusError
from speechlm.plugins import load_tokenizer
from speechlm_tokenizers import frame_store, kmeans


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for clip in list(human_clips("answers").values())[:6]:
        shutil.copy(clip.path, folder)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the recordings that are read."""
    found: list[str] = []
    load = Recording.load

    def spy(self: Recording, sample_rate: int) -> Tensor:
        found.append(self.id)
        return load(self, sample_rate)

    monkeypatch.setattr(Recording, "load", spy)
    return found


def test_what_was_heard_is_not_read_again(clips: Path, tmp_path: Path, reads: list[str]) -> None:
    (clips / "broken.wav").write_bytes(b"RIFF")
    recordings = sorted(open_corpus(clips), key=lambda each: each.id != "broken.wav")
    assert recordings[0].id == "broken.wav"
    waves = CorpusWaves(recordings, 16_000, clips, tmp_path / "work")
    heard = list(waves)
    assert len(heard) == 6
    assert len(reads) == 7
    reads.clear()
    again = CorpusWaves(recordings, 16_000, clips, tmp_path / "work")
    rest = list(again.after(4))
    assert reads == [each.id for each in recordings[5:]], "the broken one counts for none"
    assert all(map(torch.equal, rest, heard[4:]))
    assert list(again.after(6)) == []


def test_a_corpus_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    waves = CorpusWaves(list(open_corpus(tmp_path)), 16_000, tmp_path, tmp_path / "work")
    for _ in range(2):
        with pytest.raises(CorpusError, match="none of its 1 recordings can be read"):
            list(waves)


@pytest.fixture
def run(clips: Path, tmp_path: Path) -> RunConfig:
    from small_encoders import save_encoder

    options: dict[str, Any] = {
        "model": str(save_encoder("hubert", tmp_path / "encoder")),
        "layer": 2,
        "num_units": 30,
    }
    return RunConfig(
        output=tmp_path / "run",
        corpus=CorpusConfig(path=clips),
        tokenizer=TokenizerConfig(name="ssl-kmeans", options=options),
    )


def test_a_killed_fit_goes_on_and_leaves_nothing_behind(
    run: RunConfig, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_store, "SAVE_EVERY_S", 0.0)
    save = kmeans._save_pass

    def killed(folder: Path | None, number: int, centroids: Tensor) -> None:
        save(folder, number, centroids)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kmeans, "_save_pass", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_tokenizer(run)
    assert len(reads) == 6
    (work,) = run.output.glob(".tokenizer-fitting-*")
    assert list(work.rglob("centroids-*"))
    fit_tokenizer(run)
    assert len(reads) == 6, "no recording was read again"
    assert [path.name for path in run.output.iterdir()] == ["tokenizer"]
    resumed = load_tokenizer(run.tokenizer_path).fingerprint
    shutil.rmtree(run.output)
    fit_tokenizer(run)
    assert load_tokenizer(run.tokenizer_path).fingerprint == resumed


def test_another_job_does_not_go_on_from_what_is_left(
    run: RunConfig, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    with monkeypatch.context() as patched:
        patched.setattr(kmeans, "plus_plus", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_tokenizer(run)
    reads.clear()
    fit_tokenizer(replace(run, seed=run.seed + 1))
    assert len(reads) == 6
    assert [path.name for path in run.output.iterdir()] == ["tokenizer"]


def _interrupted(*args: Any) -> Tensor:
    raise KeyboardInterrupt


def test_a_tokenizer_that_needs_no_corpus_reads_none(
    run: RunConfig, reads: list[str], tmp_path: Path
) -> None:
    from dataclasses import replace

    from safetensors.torch import save_file

    save_file({"centroids": torch.randn(9, 32)}, tmp_path / "km.safetensors")
    options = {**run.tokenizer.options, "kmeans": str(tmp_path / "km.safetensors")}
    options["num_units"] = 9
    tokenizer = replace(run.tokenizer, options=options)
    corpus = CorpusConfig(path=tmp_path / "nowhere")
    fit_tokenizer(replace(run, tokenizer=tokenizer, corpus=corpus))
    assert reads == []
    assert load_tokenizer(run.tokenizer_path).vocab_size == 9


def test_a_pickle_is_read_on_trust_alone(
    run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(torch.randn(7, 32).numpy(), tmp_path / "km.bin")
    options = f"{{model: {run.tokenizer.options['model']}, layer: 1, kmeans: {tmp_path}/km.bin}}"
    words = ["fit", "tokenizer.name=ssl-kmeans", f"tokenizer.options={options}"]
    words += ["-o", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "is a pickle, which could run any program" in error
    assert error.count("\n") == 1
    assert main([*words, "--trust"]) == 0
    assert load_tokenizer(tmp_path / "run" / "tokenizer").vocab_size == 7


def test_of_a_channel_that_is_mostly_silent_little_silence_is_heard() -> None:
    speech = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    hum = 0.001 * torch.ones(5 * 16_000)
    heard = fitting.shorten_silence(torch.cat([hum, speech, hum, speech]), 16_000)
    assert len(heard) == pytest.approx(2 * 16_000 + 2 * fitting.SILENCE_S * 16_000, rel=0.1)
    assert torch.equal(heard[-16_000:], speech)


def test_no_more_than_a_sample_is_chosen(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_RECORDINGS", 3)
    corpus = open_corpus(clips)
    assert len(fitting._choose(corpus, 1)) == 3
    assert fitting._choose(corpus, 1) == fitting._choose(corpus, 1)
