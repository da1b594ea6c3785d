"""A bundle answers, continues and scores; and refuses parts that were not made for each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_bundle import question, small_bundle
from torch import Tensor

from speechlm import SpeechLM, load_vocoder
from speechlm.audio import load_audio
from speechlm.bundle import answering_voice
from speechlm.config import SamplingConfig, load_config
from speechlm.data.human import human_clips
from speechlm.errors import AudioError, CheckpointError, FingerprintError
from speechlm.files import read_json
from speechlm.speaker import EMBEDDING_DIM, default_speaker_encoder
from speechlm_vocoders.unit_vocos import UnitVocos

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


# The voice of answers.


@pytest.fixture(scope="module")
def many_voiced(model: SpeechLM) -> SpeechLM:
    """The same with a vocoder that speaks in any voice."""
    small = {"dim": 16, "num_unit_layers": 1, "num_layers": 1, "speaker_dim": EMBEDDING_DIM}
    vocoder = UnitVocos.training(model.tokenizer, small, seed=1).part()
    generator = torch.Generator().manual_seed(5)
    voice = torch.nn.functional.normalize(torch.randn(EMBEDDING_DIM, generator=generator), dim=0)
    return SpeechLM(model.tokenizer, model.lm, vocoder, voice)


def test_a_bundle_keeps_its_voice_and_answers_in_it(
    many_voiced: SpeechLM, wave: Tensor, tmp_path: Path
) -> None:
    many_voiced.save_pretrained(tmp_path / "bundle")
    again = SpeechLM.from_pretrained(tmp_path / "bundle")
    assert again.voice is not None
    assert many_voiced.voice is not None
    assert torch.equal(again.voice, many_voiced.voice)
    units = again.reply_units([again.encode(wave, 16_000)], sampling=SHORT, seeds=[2])
    answer = again.reply(wave, 16_000, sampling=SHORT, seed=2)
    assert torch.equal(answer, again.vocoder.decode(units, speaker=again.voice)[0])
    assert not torch.equal(answer, again.vocoder.decode(units)[0])
    chunks = list(again.reply_stream(wave, 16_000, sampling=SHORT, seed=2))
    assert torch.equal(torch.cat(chunks), answer)

    again.speaker = -again.voice
    other = again.reply(wave, 16_000, sampling=SHORT, seed=2)
    assert torch.equal(other, again.vocoder.decode(units, speaker=-again.voice)[0])


def test_recordings_keep_their_own_voice(many_voiced: SpeechLM, wave: Tensor) -> None:
    own = default_speaker_encoder().embed(wave, 16_000)
    units = many_voiced.encode(wave, 16_000)
    expected = many_voiced.vocoder.decode([units], speaker=own)[0]
    assert torch.equal(many_voiced.resynthesize(wave, 16_000), expected)
    continued = many_voiced.continue_units([units], sampling=SHORT, seeds=[1])
    expected = many_voiced.vocoder.decode(continued, speaker=own)[0]
    assert torch.equal(many_voiced.continue_speech(wave, 16_000, sampling=SHORT, seed=1), expected)


def test_the_voice_is_that_of_the_corpus_answers(many_voiced: SpeechLM, tmp_path: Path) -> None:
    clips = list(human_clips("answers").values())[:4]
    rows = [
        {"audio": str(clip.path), "id": str(index), "speaker": "woman" if index else "man"}
        for index, clip in enumerate(clips)
    ]
    asked = [
        {"audio": str(question()), "id": f"q{index}", "reply": str(index)} for index in range(3)
    ]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps(row) for row in [*rows, *asked]) + "\n")
    config = load_config(overrides=[f"corpus.path={corpus}", f"output={tmp_path}"])
    encoder = default_speaker_encoder()
    waves = [load_audio(clip.path, 16_000) for clip in clips]
    found = answering_voice(config, many_voiced.vocoder)
    assert found is not None
    assert torch.allclose(found, encoder.embed(torch.cat(waves[1:3]), 16_000))

    named = load_config(overrides=[f"corpus.path={corpus}", f"vocoder.voice={clips[0].path}"])
    found = answering_voice(named, many_voiced.vocoder)
    assert found is not None
    assert torch.allclose(found, encoder.embed(waves[0], 16_000))

    corpus.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert answering_voice(config, many_voiced.vocoder) is None
    plain = load_vocoder("centroid-mel", many_voiced.tokenizer)
    assert answering_voice(named, plain) is None
