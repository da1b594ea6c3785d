"""When somebody speaks in a recording, by silero-vad."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import AudioError, PluginError
from speechlm.evaluation.interaction import voice_activity
from speechlm.evaluation.interaction.voice_activity import SAMPLE_RATE, load_channels, speech_spans


def test_words_are_found_where_they_are() -> None:
    pytest.importorskip("silero_vad")
    word = load_audio(human_clips("answers")["monday"].path, SAMPLE_RATE)
    silence = torch.zeros(SAMPLE_RATE)
    threads = torch.get_num_threads()
    spans = speech_spans(torch.cat([silence, word, silence, word, silence]))
    assert torch.get_num_threads() == threads
    length_s = len(word) / SAMPLE_RATE
    assert len(spans) == 2
    for (start, end), begin_s in zip(spans, (1.0, 2.0 + length_s), strict=True):
        assert begin_s - 0.1 <= start < end <= begin_s + length_s + 0.1
        assert end - start > length_s / 2
    assert speech_spans(silence) == []
    noise = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(1)) / 10
    assert speech_spans(noise) == []


def test_what_is_no_recording_is_refused() -> None:
    with pytest.raises(AudioError, match=r"expected float samples \[T\], got .*\[2, 9\]"):
        speech_spans(torch.zeros(2, 9))
    with pytest.raises(AudioError, match="NaN"):
        speech_spans(torch.full((SAMPLE_RATE,), torch.nan))


def test_channels_stay_apart_and_may_be_silent(tmp_path: Path) -> None:
    samples = np.stack([np.zeros(800), np.linspace(-0.5, 0.5, 800)], axis=1)
    soundfile.write(tmp_path / "two.wav", samples, 8000, subtype="FLOAT")
    found = load_channels(tmp_path / "two.wav")
    assert found.shape == (2, 1600)
    assert not found[0].any()
    assert load_channels(tmp_path / "two.wav", None).shape == (2, 800)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "not audio"), (b"RIFF none", "not audio"), (None, "no such file")]
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=f"bad.wav: {reason}"):
        load_channels(path)


def test_cut_and_nan_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    soundfile.write(path, np.full(9, np.nan), 8000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        load_channels(path)
    soundfile.write(path, np.zeros(8000), 8000)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(AudioError, match="truncated"):
        load_channels(path)
    soundfile.write(path, np.zeros(0), 8000)
    with pytest.raises(AudioError, match="holds no samples"):
        load_channels(path)


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "silero_vad":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    voice_activity._silero.cache_clear()
    with pytest.raises(PluginError, match=r"pip install 'speechlm\[evaluate\]'"):
        speech_spans(torch.zeros(SAMPLE_RATE))
