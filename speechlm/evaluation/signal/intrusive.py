"""How far a recording is from a reference of the same, by formulas and by published measures.

PESQ, STOI, SI-SDR and the mel distance compare sample by sample or frame by frame: they say
something of a codec that keeps time, and next to nothing of a vocoder that invents phases or
durations.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from speechlm.errors import InputError, PluginError
from speechlm.evaluation.signal.alignment import align
from speechlm.evaluation.signal.cepstra import (
    HOP,
    active_frames,
    cepstra,
    distortion,
    mel_amplitudes,
)
from speechlm.evaluation.signal.pitch_errors import pitch_figures, track_hz

SAMPLE_RATE = 16_000
LENGTH_SLACK = 0.1
"""Part of the reference by which a recording may be longer or shorter where time must agree."""
QUIETEST = 1e-5
"""Amplitude of a mel band below which :func:`mel_distance` tells none apart."""
MOST_DB = 100.0
"""What SI-SDR says of a recording without any distortion."""


def same_length(wave: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both cut to the shorter.

    Raises:
        InputError: Their lengths differ by more than :data:`LENGTH_SLACK`.
    """
    if abs(len(wave) - len(reference)) > LENGTH_SLACK * len(reference):
        seconds = (len(each) / SAMPLE_RATE for each in (wave, reference))
        raise InputError(
            "measured only where time agrees: expected {1:.2f} s as in the reference, "
            "got {0:.2f} s".format(*seconds)
        )
    shorter = min(len(wave), len(reference))
    return wave[:shorter], reference[:shorter]


def aligned_figures(wave: Tensor, reference: Tensor) -> dict[str, tuple[float, float]]:
    """Mel cepstral distortion and errors of pitch along one alignment of frames of 10 ms.

    Frames are laid upon each other by cepstra without the zeroth, silence included. The
    distortion is of frames in which the reference speaks, the pitch of all.

    Args:
        wave: float32 [T] at 16 kHz.
        reference: float32 [T'].

    Returns:
        Sum and count of ``mcd13``, ``mcd13_c0`` (dB, see
        :mod:`speechlm.evaluation.signal.cepstra`) and of
        :func:`speechlm.evaluation.signal.pitch_errors.pitch_figures`.

    Raises:
        InputError: Longer than two minutes.
    """
    amplitudes, _ = mel_amplitudes(wave)
    reference_amplitudes, power = mel_amplitudes(reference)
    found, expected = cepstra(amplitudes), cepstra(reference_amplitudes)
    columns, rows = align(found[:, 1:], expected[:, 1:])
    speaks = active_frames(power)[rows]
    first, second = found[columns[speaks]], expected[rows[speaks]]
    return {
        "mcd13": (distortion(first[:, 1:], second[:, 1:]), 1.0),
        "mcd13_c0": (distortion(first, second), 1.0),
        **pitch_figures(
            track_hz(reference, SAMPLE_RATE, HOP)[rows], track_hz(wave, SAMPLE_RATE, HOP)[columns]
        ),
    }


def pesq(wave: Tensor, reference: Tensor) -> float:
    """PESQ, wide band: 1.0 (bad) to 4.64.

    Args:
        wave: float32 [T] at 16 kHz.
        reference: float32 [T'].

    Raises:
        InputError: Of other lengths, too short, or it finds no speech.
        PluginError: The package is not installed.

    Source:
        ITU-T P.862.2, by the package pesq.
    """
    package = pesq_package()
    wave, reference = same_length(wave, reference)
    try:
        return float(package.pesq(SAMPLE_RATE, reference.numpy(), wave.numpy(), "wb"))
    except package.PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise InputError(f"PESQ cannot rate it: {text}") from error


def pesq_package() -> Any:
    """The package.

    Raises:
        PluginError: It is not installed.
    """
    try:
        return importlib.import_module("pesq")
    except ImportError as error:
        raise PluginError(
            "PESQ needs the package pesq, which a C compiler builds: pip install 'speechlm[pesq]'"
        ) from error


def stoi(wave: Tensor, reference: Tensor) -> Mapping[str, float]:
    """Short-time objective intelligibility, and the extended one: about 0 to 1.

    Args:
        wave: float32 [T] at 16 kHz.
        reference: float32 [T'].

    Raises:
        InputError: Of other lengths, or with less than 0.4 s of speech.
        PluginError: pystoi is not installed.

    Sources:
        Taal et al. 2011 (STOI); Jensen and Taal 2016 (ESTOI); by the package pystoi.
    """
    package = stoi_package()
    wave, reference = same_length(wave, reference)
    clean, processed = reference.double().numpy(), wave.double().numpy()
    with _fixed_draws(), warnings.catch_warnings():
        # Of what is too short it says 1e-5, and a warning.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return {
                name: float(package.stoi(clean, processed, SAMPLE_RATE, extended=extended))
                for name, extended in (("stoi", False), ("estoi", True))
            }
        except RuntimeWarning as warning:
            raise InputError(
                "STOI cannot rate it: expected at least 0.4 s of speech in the reference"
            ) from warning


@contextmanager
def _fixed_draws() -> Iterator[None]:
    """numpy's common generator, from which pystoi draws the least of noise for ESTOI: without
    this, the last digits would hang on whatever was measured before."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def stoi_package() -> Any:
    """The package.

    Raises:
        PluginError: It is not installed.
    """
    try:
        return importlib.import_module("pystoi")
    except ImportError as error:
        raise PluginError(
            "STOI needs the package pystoi; run pip install 'speechlm[evaluate]'"
        ) from error


def si_sdr(wave: Tensor, reference: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio, dB; at most :data:`MOST_DB`.

    Args:
        wave: float32 [T].
        reference: float32 [T'].

    Raises:
        InputError: Of other lengths.

    Source:
        Le Roux et al. 2019, arXiv:1811.02508; means are taken off, as in torchmetrics' SI-SNR.
    """
    wave, reference = same_length(wave, reference)
    heard, clean = (each.double() - each.double().mean() for each in (wave, reference))
    target = (heard @ clean) / (clean @ clean).clamp(min=1e-20) * clean
    signal, rest = float(target @ target), float((heard - target).square().sum())
    least = 10 ** (-MOST_DB / 10)
    return float(10 * np.log10((signal + least * rest) / (rest + least * signal)))


def mel_distance(wave: Tensor, reference: Tensor) -> float:
    """The mean difference of the natural logarithms of 80 mel bands' amplitudes.

    Args:
        wave: float32 [T] at 16 kHz.
        reference: float32 [T'].

    Raises:
        InputError: Of other lengths.
    """
    both = (mel_amplitudes(each)[0] for each in same_length(wave, reference))
    first, second = (each.clamp(min=QUIETEST).log() for each in both)
    return float((first - second).abs().mean())
