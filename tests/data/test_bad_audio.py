"""Each bad recording gives one line that says what it is; none is shortened in silence."""

import io
import os
import resource
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechlm.audio import load_audio
from speechlm.data.corpus import open_corpus
from speechlm.errors import AudioError, CorpusError

RATE = 16_000


def noise(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def encoded(extension: str, samples: np.ndarray | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    samples = noise() if samples is None else samples
    kind = {"rf64": "RF64", "opus": "OGG"}.get(extension, extension.upper())
    subtype = "OPUS" if extension == "opus" else None
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(path, RATE)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def silence() -> bytes:
    return encoded("wav", np.zeros(RATE, dtype=np.float32))


def with_nan() -> bytes:
    samples = noise()
    samples[500] = np.nan
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "the file is empty (0 bytes)"),
        (lambda: b"not audio\n" * 50, "not audio that can be read (Format not recognised)"),
        (with_nan, "holds NaN or infinite samples; export it again"),
        (silence, "silent (no sample above 0.0001 of full scale)"),
        (lambda: encoded("wav", noise(0.01)), "10 ms long, expected at least 20 ms"),
        (lambda: encoded("wav", noise(0)), "0 ms long, expected at least 20 ms"),
    ],
    ids=["zero bytes", "text", "NaN", "silence", "10 ms", "no samples"],
)
def test_a_bad_recording_is_named_with_its_fault(
    tmp_path: Path, content: Callable[[], bytes], message: str
) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content())
    assert refusal(path) == message


@pytest.mark.parametrize("kept", [0.5, 0.98])
@pytest.mark.parametrize(
    "extension", ["wav", "rf64", "flac", "ogg", "opus", "aiff", "au", "caf", "w64"]
)
def test_a_truncated_file_is_not_read_as_a_short_one(
    tmp_path: Path, extension: str, kept: float
) -> None:
    whole = encoded(extension)
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(whole)
    assert len(load_audio(path, RATE)) == RATE
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "truncated" in refusal(path) or "malformed" in refusal(path)


def test_a_truncated_wav_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(encoded("wav")[:16_044])
    assert refusal(path) == (
        "truncated (its header promises 32000 bytes of samples, it holds 16000); get the whole file"
    )


def test_a_truncated_flac_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    path.write_bytes(encoded("flac")[:10_000])
    assert refusal(path) == "truncated or damaged (flac decoder lost sync)"


@pytest.mark.parametrize("length", range(4, 60, 5))
def test_a_file_cut_within_its_header_is_refused(tmp_path: Path, length: int) -> None:
    for extension in ("wav", "flac", "ogg", "aiff", "au", "caf", "w64", "rf64"):
        path = tmp_path / f"cut.{extension}"
        path.write_bytes(encoded(extension)[:length])
        assert refusal(path)


def test_a_wav_of_unknown_length_as_written_into_a_pipe_is_read(tmp_path: Path) -> None:
    whole = encoded("wav")
    at = whole.index(b"data") + 4
    path = tmp_path / "piped.wav"
    for unknown in (0xFFFFFFFF, 0x7FFFF000 + 36):
        path.write_bytes(whole[:at] + struct.pack("<I", unknown) + whole[at + 4 :])
        assert len(load_audio(path, RATE)) == RATE


def test_a_chunk_before_or_after_the_samples_is_no_fault(tmp_path: Path) -> None:
    whole = encoded("wav")
    at = whole.index(b"data")
    extra = b"LIST" + struct.pack("<I", 5) + b"hello\x00"
    path = tmp_path / "tagged.wav"
    path.write_bytes(whole[:at] + extra + whole[at:] + extra)
    assert len(load_audio(path, RATE)) == RATE


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.wav") == "no such file"
    assert refusal(tmp_path) == "is a folder, expected an audio file"


def test_a_name_beyond_what_the_file_system_allows_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("n" * 300 + ".wav")) == "cannot be read (File name too long)"


@pytest.mark.parametrize(
    "name",
    [b"\xc3\xa9t\xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97.wav", b"caf\xe9.wav", b"n" * 251 + b".wav"],
    ids=["non-ASCII", "not UTF-8", "255 bytes"],
)
def test_any_name_that_the_file_system_allows_is_read(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encoded("wav"))
    assert len(load_audio(path, RATE)) == RATE
    assert [len(each.load(RATE)) for each in open_corpus(tmp_path)] == [RATE]


@pytest.mark.parametrize("rate", [8_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_rates_and_stereo_are_no_fault(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "other.wav"
    path.write_bytes(encoded("wav", np.stack([noise(rate=rate)] * channels, axis=1), rate))
    assert len(load_audio(path, RATE)) == RATE


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no audio in it; expected files like"):
        open_corpus(tmp_path)


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder with a recording that this process may not open, be it root's."""
    parent = Path(tempfile.mkdtemp())  # pytest's own are closed to all but root, too
    parent.chmod(0o755)
    folder = parent / "locked"
    folder.mkdir()
    (folder / "a.wav").write_bytes(encoded("wav"))
    folder.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65_534)
    yield folder
    if is_root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(parent)


def test_an_unreadable_directory_is_named(locked_folder: Path) -> None:
    assert refusal(locked_folder / "a.wav") == "cannot be read (Permission denied)"
    for corpus in (locked_folder, locked_folder.parent):
        with pytest.raises(CorpusError) as caught:
            open_corpus(corpus)
        assert str(locked_folder) in str(caught.value)
        assert "read" in str(caught.value)


def test_three_hours_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    minute = (noise(60, 8_000) * 3000).astype(np.int16)
    with soundfile.SoundFile(path, "w", 8_000, 1) as file:
        for _ in range(180):
            file.write(minute)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wave = load_audio(path, 8_000)
    used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert len(wave) == 3 * 3600 * 8_000
    assert used < 1.5 * wave.nbytes
    assert torch.equal(wave[: 60 * 8_000], wave[-60 * 8_000 :])


def test_more_than_four_hours_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "endless.flac"
    with soundfile.SoundFile(path, "w", 100, 1) as file:
        file.write(np.zeros(5 * 3600 * 100, dtype=np.int16))
    assert refusal(path) == "5.0 h long, at most 4 h can be read; cut it into pieces"
