"""The speaker encoder tells voices apart, and says what is wrong with its weights."""

from pathlib import Path

import pytest
import torch

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import AudioError, CheckpointError
from speechlm.speaker import (
    EMBEDDING_DIM,
    SAMPLE_RATE,
    SpeakerEncoder,
    default_speaker_encoder,
)


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return default_speaker_encoder()


@pytest.fixture(scope="module")
def human() -> list[torch.Tensor]:
    return [load_audio(clip.path, SAMPLE_RATE) for clip in human_clips("prompts").values()]


def test_the_same_voice_is_near_and_others_are_far(
    encoder: SpeakerEncoder, human: list[torch.Tensor]
) -> None:
    espeak = pytest.importorskip("speechlm.data.espeak")
    voices = espeak.list_voices(seed=0)[:6]
    text = "the quick brown fox jumps over the lazy dog and runs away"
    made = [espeak.speak(text, voice) for voice in voices]
    others = [
        encoder.embed(torch.from_numpy(each.samples).float(), each.sample_rate) for each in made
    ]
    same = [encoder.embed(wave, SAMPLE_RATE) for wave in human]
    for embedding in (*same, *others):
        assert embedding.shape == (EMBEDDING_DIM,)
        assert embedding.norm() == pytest.approx(1, abs=1e-5)
    nearest_same = min(float(same[0] @ each) for each in same[1:])
    nearest_other = max(float(each @ other) for each in same for other in others)
    assert nearest_same > 0.75 > nearest_other + 0.05


def test_neither_rate_nor_loudness_nor_pauses_make_another_voice(
    encoder: SpeakerEncoder, human: list[torch.Tensor]
) -> None:
    from speechlm.audio import resample

    wave = human[0]
    expected = encoder.embed(wave, SAMPLE_RATE)
    for changed, rate in (
        (resample(wave, SAMPLE_RATE, 24_000), 24_000),
        (0.02 * wave, SAMPLE_RATE),
        (torch.cat([torch.zeros(48_000), wave, torch.zeros(48_000)]), SAMPLE_RATE),
        (torch.stack([wave, wave]), SAMPLE_RATE),
    ):
        assert float(encoder.embed(changed, rate) @ expected) > 0.95


def test_a_reference_that_cannot_be_used_says_why(encoder: SpeakerEncoder) -> None:
    with pytest.raises(AudioError, match="the reference: silent"):
        encoder.embed(torch.zeros(16_000), SAMPLE_RATE)


def test_weights_of_another_model_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save({"model_state": {"lstm.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    for name in ("other.pt", "cut.pt", "missing.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: expected the weights") as caught:
            SpeakerEncoder.from_file(tmp_path / name)
        assert "\n" not in str(caught.value)
