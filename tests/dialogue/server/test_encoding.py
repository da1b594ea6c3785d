"""Speech as bytes: every format can be read again, and comes in pieces where it says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from speechlm.dialogue.server.encoding import FORMATS, SAMPLE_RATE

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)


def encoded(name: str, samples: np.ndarray = TONE) -> list[bytes]:
    encoder = FORMATS[name].encoder()
    parts = [encoder.push(samples[at : at + 2400]) for at in range(0, len(samples), 2400)]
    return [*parts, encoder.finish()]


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
def test_what_was_sent_piece_by_piece_is_read_as_one_recording(name: str) -> None:
    wave, rate = soundfile.read(io.BytesIO(b"".join(encoded(name))), dtype="float32")
    assert rate == SAMPLE_RATE
    assert len(TONE) <= len(wave) <= len(TONE) + 3 * 1152  # an MP3 is padded at both ends
    middle = np.abs(np.fft.rfft(wave[SAMPLE_RATE // 2 :][:SAMPLE_RATE]))
    assert int(middle.argmax()) == 440
    assert middle.max() / (SAMPLE_RATE / 2) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("name", ["wav", "mp3", "pcm"])
def test_sound_comes_with_the_first_piece(name: str) -> None:
    assert len(encoded(name)[0]) > 0


@pytest.mark.parametrize("name", ["wav", "pcm"])
def test_plain_samples_are_those_that_were_given(name: str) -> None:
    sent = b"".join(encoded(name))
    samples = np.frombuffer(sent[len(sent) - 2 * len(TONE) :], dtype="<i2") / 32767
    assert np.abs(samples - TONE).max() <= 0.5 / 32767 + 1e-7


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap() -> None:
    sent = np.frombuffer(b"".join(encoded("pcm", 3 * TONE)), dtype="<i2")
    assert sent.max() == 32767
    assert sent.min() == -32767
    assert (np.sign(sent) == np.sign(np.round(TONE * 3 * 32767))).all()
