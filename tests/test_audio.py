from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm import audio
from speechlm.audio import load_audio, prepare, resample, save_audio
from speechlm.errors import AudioError

RATE = 16_000


def tone(rate: int, seconds: float = 1.0, hz: float = 440.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.aiff", "a.au", "a.caf", "a.W64"])
def test_any_format_of_soundfile_is_read_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    soundfile.write(path, tone(RATE).numpy(), RATE, format=path.suffix[1:].upper())
    wave = load_audio(path, RATE)
    assert wave.dtype == torch.float32
    assert wave.is_contiguous()
    assert (wave - tone(RATE)).abs().max() < 0.02


@pytest.mark.parametrize("rate", [8_000, 11_127, 22_050, 44_100, 48_000])
def test_any_rate_becomes_the_one_that_is_wanted(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate).numpy(), rate)
    wave = load_audio(tmp_path / "a.wav", RATE)
    assert len(wave) == RATE
    assert (wave - tone(RATE))[500:-500].abs().max() < 1e-2


@given(
    rate=st.sampled_from([8_000, 22_050, 44_100, 48_000]),
    length=st.integers(1, 150_000),
)
@settings(max_examples=30, deadline=None)
def test_resampling_by_blocks_equals_resampling_the_whole(rate: int, length: int) -> None:
    wave = torch.randn(length, generator=torch.Generator().manual_seed(length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "BLOCK_S", 1)
        result = resample(wave, rate, RATE)
    whole = torchaudio.functional.resample(wave, rate, RATE)
    assert result.shape == whole.shape
    assert torch.allclose(result, whole, atol=1e-6)


def test_a_part_of_a_file_is_read_alone(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(RATE).numpy(), RATE)
    part = load_audio(tmp_path / "a.flac", RATE, start_s=0.25, duration_s=0.5)
    assert torch.equal(part, load_audio(tmp_path / "a.flac", RATE)[4000:12_000])
    rest = load_audio(tmp_path / "a.flac", RATE, start_s=0.25)
    assert len(rest) == 12_000


@pytest.mark.parametrize(
    ("start_s", "duration_s", "asked"),
    [(0.5, 1.0, "0.5 s to 1.5 s"), (2.0, None, "2 s to the end"), (-1.0, 1.5, "-1 s to 0.5 s")],
)
def test_a_part_beyond_the_file_is_refused(
    tmp_path: Path, start_s: float, duration_s: float | None, asked: str
) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(RATE).numpy(), RATE)
    with pytest.raises(AudioError) as caught:
        load_audio(path, RATE, start_s=start_s, duration_s=duration_s)
    assert str(caught.value) == f"{path}: {asked} was asked for, it is 1 s long"


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    left, right = tone(RATE), 0.5 * tone(RATE, hz=300.0)
    soundfile.write(tmp_path / "a.wav", torch.stack([left, right], dim=1).numpy(), RATE, "FLOAT")
    assert torch.allclose(load_audio(tmp_path / "a.wav", RATE), (left + right) / 2, atol=1e-6)
    assert torch.allclose(
        prepare(torch.stack([left, right]), RATE, RATE), (left + right) / 2, atol=1e-6
    )


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    save_audio(tmp_path / "a.wav", 3 * tone(RATE), RATE)
    assert torch.allclose(
        load_audio(tmp_path / "a.wav", RATE), (3 * tone(RATE)).clamp(-1, 1), atol=1e-4
    )
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(RATE, dtype=torch.int16), "expected float samples [T] or [channels, T], got "),
        (torch.zeros(1, 2, RATE), "expected float samples [T] or [channels, T], got torch.float32"),
        (torch.zeros(0), "the recording: 0 ms long, expected at least 20 ms"),
        (torch.full((RATE,), float("inf")), "the recording: holds NaN or infinite samples"),
    ],
)
def test_a_tensor_that_is_no_recording_is_refused(wave: torch.Tensor, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        prepare(wave, RATE, RATE)
    assert message in str(caught.value)


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(AudioError, match="expected a sample rate in Hz, got 0"):
        prepare(tone(RATE), 0, RATE)


def test_samples_at_either_end_of_the_scale_are_kept(tmp_path: Path) -> None:
    samples = np.array([-1.0, 1.0] * 400, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    assert load_audio(tmp_path / "a.wav", RATE).tolist() == samples.tolist()
