"""A bundle answers, continues and scores; and refuses parts that were not made for each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_bundle import question, small_bundle
from torch import Tensor

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.config import SamplingConfig
from speechlm.errors import AudioError, CheckpointError, FingerprintError
from speechlm.files import read_json

SHORT = SamplingConfig(max_units=20, temperature=1.0)


@pytest.fixture(scope="module")
def model(bundle_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(bundle_folder)


@pytest.fixture(scope="module")
def wave() -> Tensor:
    return load_audio(question(), 16_000)


def test_a_saved_bundle_is_the_same_model(model: SpeechLM, wave: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "again")
    again = SpeechLM.from_pretrained(tmp_path / "again")
    assert again.lm.fingerprint == model.lm.fingerprint
    replies = [one.reply(wave, 16_000, sampling=SHORT, seed=3) for one in (model, again)]
    assert torch.equal(*replies)
    assert again.log_likelihood(wave, 16_000) == model.log_likelihood(wave, 16_000)


def test_a_reply_is_seeded(model: SpeechLM, wave: Tensor) -> None:
    first, same, other = (
        model.reply(wave, 16_000, sampling=SHORT, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_streamed_reply_adds_up_to_the_whole(model: SpeechLM, wave: Tensor) -> None:
    chunks = list(model.reply_stream(wave, 16_000, sampling=SHORT, seed=2))
    assert len(chunks) > 2
    assert torch.equal(torch.cat(chunks), model.reply(wave, 16_000, sampling=SHORT, seed=2))


def test_stereo_and_other_rates_are_taken(model: SpeechLM, wave: Tensor) -> None:
    stereo = wave.repeat(2, 1)
    assert torch.equal(model.resynthesize(stereo, 16_000), model.resynthesize(wave, 16_000))
    slow = model.resynthesize(wave[::2], 8_000)
    assert abs(len(slow) - len(wave)) <= model.tokenizer.hop_length


def test_continuing_gives_what_follows_only(model: SpeechLM, wave: Tensor) -> None:
    continued = model.continue_speech(wave, 16_000, sampling=SHORT)
    assert 0 < len(continued) <= SHORT.max_units * model.vocoder.hop_length


def test_a_longer_recording_is_less_probable(model: SpeechLM, wave: Tensor) -> None:
    half = model.log_likelihood(wave[: len(wave) // 2], 16_000)
    assert model.log_likelihood(wave, 16_000) < half < 0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(16_000), "silent"),
        (torch.full((16_000,), torch.nan), "NaN"),
        (torch.ones(160), "10 ms long"),
        (torch.ones(2, 2, 100), "expected float samples"),
    ],
)
def test_a_bad_recording_is_refused(model: SpeechLM, samples: Tensor, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        model.reply(samples, 16_000)


def test_a_refitted_tokenizer_is_refused_though_all_shapes_agree(
    bundle_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(bundle_folder, broken)
    shutil.rmtree(broken / "tokenizer")
    small_bundle(seed=2).tokenizer.save(broken / "tokenizer")
    with pytest.raises(FingerprintError, match=r"the unit LM was made for 'logmel-.*fitted again"):
        SpeechLM.from_pretrained(broken)


def test_an_exchanged_lm_of_the_same_shape_is_refused(
    model: SpeechLM, bundle_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(bundle_folder, broken)
    with torch.no_grad():
        other = SpeechLM.from_pretrained(bundle_folder).lm
        other.decoder.model.norm.weight.mul_(2)
    shutil.rmtree(broken / "lm")
    other.save(broken / "lm")
    with pytest.raises(FingerprintError, match="its lm was exchanged"):
        SpeechLM.from_pretrained(broken)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no speechlm\.json"):
        SpeechLM.from_pretrained(tmp_path)


def test_an_interrupted_save_leaves_the_old_bundle(
    model: SpeechLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    model.save_pretrained(folder)
    before = read_json(folder / "speechlm.json")

    def fail(self: object, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model.vocoder), "save", fail)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    assert read_json(folder / "speechlm.json") == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
