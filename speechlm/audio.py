"""Waveforms in and out: any format soundfile reads, one channel, one rate, checked."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from speechlm.errors import AudioError
from speechlm.files import write_aside
from speechlm.truncation import truncation

EXTENSIONS = frozenset(
    {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"}
)
"""What a folder of audio is searched for."""

MIN_DURATION_S = 0.02
"""Shorter recordings hold less than one frame of anything; they are refused."""
MAX_DURATION_S = 4 * 3600.0
"""Longer recordings are refused: at 16 kHz one would take close to 1 GB in memory."""
SEGMENT_SLACK_S = 0.05
"""Manifests round: a segment may end so much after its file."""
BLOCK_S = 60
"""Seconds that are read or resampled at a time."""
MP3_SLACK = 4 * 1152
"""Samples by which an MP3's length is a guess: its encoder's and decoder's delays."""
SILENCE_PEAK = 1e-4
"""A recording whose peak is below this (-80 dBFS) is called silent."""


def load_audio(
    path: Path,
    sample_rate: int,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
) -> Tensor:
    """Read one recording, mix it down to one channel and resample it once.

    Args:
        path: Any format that soundfile reads.
        sample_rate: The rate that is wanted, Hz.
        start_s: Where to begin in the file, s.
        duration_s: How much of it to read, s; None for all the rest.
        channel: The only one to read, from 0; None for all.

    Returns:
        float32 [T] at ``sample_rate``.

    Raises:
        AudioError: Missing, empty, not audio, holding less than its header promises, shorter than
            ``MIN_DURATION_S``, longer than ``MAX_DURATION_S``, NaN or infinite, or silent.
    """
    try:
        if path.is_dir():
            raise AudioError(f"{path}: is a folder, expected an audio file")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes)")
        cut = truncation(path)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        # As bytes: a name need not be valid text.
        file = soundfile.SoundFile(os.fsencode(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path}: not audio that can be read ({_reason(error)})") from error
    if cut is not None:
        file.close()
        raise AudioError(f"{path}: truncated ({cut}); get the whole file")
    try:
        with file:
            wave = _read_mono(file, str(path), start_s, duration_s, channel)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path}: truncated or damaged ({_reason(error)})") from error
    return prepare(wave, file.samplerate, sample_rate, name=str(path))


def measure_audio(path: Path) -> float:
    """How long a recording is by its header, s.

    Raises:
        AudioError: There is no such file, or it is no audio.
    """
    try:
        found = soundfile.info(os.fsencode(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = "no such file" if not path.exists() else f"not audio ({_reason(error)})"
        raise AudioError(f"{path}: {reason}") from error
    return float(found.frames / found.samplerate)


def _reason(error: Exception) -> str:
    """What libsndfile says, without the name of the file again."""
    return str(error).rpartition(": ")[2].strip().rstrip(".")


def _read_mono(
    file: soundfile.SoundFile,
    name: str,
    start_s: float,
    duration_s: float | None,
    channel: int | None,
) -> Tensor:
    """Read by blocks, so that all channels of a long recording are never in memory at once."""
    if channel is not None and channel >= file.channels:
        raise AudioError(f"{name}: expected a channel from 0 to {file.channels - 1}, got {channel}")
    rate = file.samplerate
    start = round(start_s * rate)
    promised = file.frames - start if duration_s is None else round(duration_s * rate)
    if start < 0 or promised < 0 or start + promised > file.frames + SEGMENT_SLACK_S * rate:
        until = "the end" if duration_s is None else f"{start_s + duration_s:g} s"
        raise AudioError(
            f"{name}: {start_s:g} s to {until} was asked for, it is {file.frames / rate:g} s long"
        )
    promised = min(promised, file.frames - start)
    if promised > MAX_DURATION_S * rate:
        raise AudioError(
            f"{name}: {promised / rate / 3600:.1f} h long, at most "
            f"{MAX_DURATION_S / 3600:.0f} h can be read; cut it into pieces"
        )
    file.seek(start)
    mono = np.empty(promised, dtype=np.float32)
    held = 0
    while held < promised:
        block = file.read(min(BLOCK_S * rate, promised - held), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        mono[held : held + len(block)] = (
            block.mean(axis=1) if channel is None else block[:, channel]
        )
        held += len(block)
    if promised - held > (MP3_SLACK if file.format == "MP3" else 0):
        raise AudioError(
            f"{name}: truncated (its header promises {promised} samples, it holds {held}); "
            "get the whole file"
        )
    return torch.from_numpy(mono[:held])


def prepare(wave: Tensor, rate: int, sample_rate: int, *, name: str = "the recording") -> Tensor:
    """Check a waveform, mix it down to one channel and resample it.

    Args:
        wave: float [T] or [channels, T] at ``rate`` Hz, in -1..1.
        rate: Its rate, Hz.
        sample_rate: The rate that is wanted, Hz.
        name: What errors call it.

    Returns:
        float32 [T'] at ``sample_rate``, contiguous.

    Raises:
        AudioError: See :func:`load_audio`.
    """
    if wave.ndim not in (1, 2) or not wave.is_floating_point():
        raise AudioError(
            f"{name}: expected float samples [T] or [channels, T], "
            f"got {wave.dtype} {list(wave.shape)}"
        )
    if rate < 1:
        raise AudioError(f"{name}: expected a sample rate in Hz, got {rate}")
    wave = wave.float().mean(dim=0) if wave.ndim == 2 else wave.float()
    if wave.shape[0] < MIN_DURATION_S * rate:
        raise AudioError(
            f"{name}: {1000 * wave.shape[0] / rate:.0f} ms long, "
            f"expected at least {1000 * MIN_DURATION_S:.0f} ms"
        )
    low, high = wave.aminmax()  # both are NaN if any sample is
    if not (low.isfinite() and high.isfinite()):
        raise AudioError(f"{name}: holds NaN or infinite samples; export it again")
    if max(-low, high) < SILENCE_PEAK:
        raise AudioError(f"{name}: silent (no sample above {SILENCE_PEAK:g} of full scale)")
    return resample(wave, rate, sample_rate).contiguous()


def resample(wave: Tensor, rate: int, sample_rate: int) -> Tensor:
    """Change the rate of float32 [..., T] to [..., ceil(T * sample_rate / rate)], without aliasing.

    Long waveforms are done by blocks: memory beyond the result does not grow with T.
    """
    if rate == sample_rate:
        return wave
    import torchaudio.functional

    # Odd rates (11,127 Hz) reduce badly, and the filter bank grows with both terms of the
    # ratio; the nearest ratio of small terms is within a hundredth of a cent of the pitch.
    ratio = Fraction(rate, sample_rate).limit_denominator(1000)
    old, new = ratio.numerator, ratio.denominator
    length = wave.shape[-1]
    block = old * max(1, BLOCK_S * rate // old)
    context = old * 16  # the filter reaches over less than 8 periods of the ratio
    # Made once and filled. What a rounded ratio leaves over at the end stays zero.
    result = wave.new_zeros(*wave.shape[:-1], -(-length * sample_rate // rate))
    for start in range(0, length, block):
        before = min(context, start)
        part = wave[..., start - before : start + block + context]
        done = torchaudio.functional.resample(part, old, new)[..., before // old * new :]
        place = result[..., start // old * new :][..., : block // old * new]
        size = min(place.shape[-1], done.shape[-1])
        place[..., :size] = done[..., :size]
    return result


def save_audio(path: Path, wave: Tensor, sample_rate: int) -> None:
    """Write float32 [T] in the format of ``path``'s extension, whole or not at all."""
    samples = wave.detach().cpu().clamp(-1.0, 1.0).numpy().astype(np.float32)
    with write_aside(path) as aside:
        soundfile.write(os.fsencode(aside), samples, sample_rate)
