"""Sound on the wire: G.711 as libsndfile writes it, PCM bit for bit."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speechlm.dialogue.server.realtime.formats import AudioFormat, FormatName, format_from
from speechlm.errors import InputError

ALL = np.arange(-32768, 32768).astype(np.int16)
G711: list[tuple[FormatName, str]] = [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")]


@pytest.mark.parametrize(("name", "subtype"), G711)
def test_every_value_becomes_the_code_that_libsndfile_writes(
    name: FormatName, subtype: str
) -> None:
    written = io.BytesIO()
    soundfile.write(written, ALL, 8000, format="RAW", subtype=subtype)
    ours = AudioFormat(name=name, rate=8000).encode(ALL.astype(np.float32) / 32768)
    assert base64.b64decode(ours) == written.getvalue()


@pytest.mark.parametrize(("name", "subtype"), G711)
def test_every_code_becomes_the_value_that_libsndfile_reads(name: FormatName, subtype: str) -> None:
    codes = bytes(range(256))
    read, _ = soundfile.read(
        io.BytesIO(codes), samplerate=8000, channels=1, format="RAW", subtype=subtype, dtype="int16"
    )
    ours = AudioFormat(name=name, rate=8000).decode(base64.b64encode(codes).decode())
    np.testing.assert_array_equal(ours, read.astype(np.float32) / 32768)


@given(st.binary(max_size=400).map(lambda raw: raw[: len(raw) // 2 * 2]))
def test_pcm_comes_back_bit_for_bit(raw: bytes) -> None:
    text = base64.b64encode(raw).decode()
    assert AudioFormat().encode(AudioFormat().decode(text)) == text


@given(st.lists(st.floats(-3, 3, width=32), max_size=50))
def test_sound_that_is_too_loud_is_cut_off(samples: list[float]) -> None:
    sound = np.array(samples, np.float32)
    back = AudioFormat().decode(AudioFormat().encode(sound))
    np.testing.assert_allclose(back, np.clip(sound, -1, 32767 / 32768), atol=1 / 65536)


@pytest.mark.parametrize("text", ["AAA", "!!!!", "AA==", "AAAA\n", "ä"])
def test_what_is_no_sound_is_said(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        AudioFormat().decode(text)


def test_formats_are_read_as_they_are_shown() -> None:
    for form in (
        AudioFormat(),
        AudioFormat(rate=16_000),
        AudioFormat(name="audio/pcmu", rate=8000),
    ):
        assert format_from(form.shown()) == form
    assert format_from({"type": "audio/pcm"}).rate == 24_000


@pytest.mark.parametrize(
    "shown", [{"type": "audio/pcm", "rate": 12_345}, {"type": "audio/pcmu", "rate": 16_000}]
)
def test_rates_that_there_are_not_are_refused(shown: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"expected audio/pcmu? at .* Hz, got"):
        format_from(shown)
