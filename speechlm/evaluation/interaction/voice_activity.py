"""When somebody speaks in a recording: silero-vad, whose wheel carries its network.

The thresholds are silero-vad's own defaults, written down here so that a new release of the
package cannot change a figure in silence.

Source:
    Silero Team 2024, "Silero VAD", github.com/snakers4/silero-vad.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from speechlm.audio import resample
from speechlm.errors import AudioError, PluginError
from speechlm.evaluation.interaction.turns import Span
from speechlm.truncation import truncation

SAMPLE_RATE = 16_000
"""Rate that the network hears, Hz."""
SPEECH_PROBABILITY = 0.5
"""A window of 32 ms is speech from here on."""
SILENCE_PROBABILITY = 0.35
"""Speech goes on until it is less probable than this."""
LEAST_SPEECH_S = 0.25
"""Shorter speech is none: a cough, a click."""
LEAST_SILENCE_S = 0.1
"""Shorter silence does not part two spans."""
PADDING_S = 0.03
"""Added to both ends of a span, as far as there is silence."""


def speech_spans(wave: Tensor) -> list[Span]:
    """Find speech.

    Args:
        wave: float32 [T] at :data:`SAMPLE_RATE`.

    Returns:
        From and to of each stretch of speech, seconds, in order and apart from each other;
        nothing for silence.

    Raises:
        PluginError: silero-vad is not installed.
        AudioError: Not one channel of finite float samples.
    """
    if wave.ndim != 1 or not wave.is_floating_point():
        raise AudioError(f"expected float samples [T], got {wave.dtype} {list(wave.shape)}")
    if not wave.isfinite().all():
        raise AudioError("expected finite samples, got NaN or infinite ones")
    network, find = _silero()
    found = find(
        wave.detach().float().cpu(),
        network,
        sampling_rate=SAMPLE_RATE,
        threshold=SPEECH_PROBABILITY,
        neg_threshold=SILENCE_PROBABILITY,
        min_speech_duration_ms=round(1000 * LEAST_SPEECH_S),
        min_silence_duration_ms=round(1000 * LEAST_SILENCE_S),
        speech_pad_ms=round(1000 * PADDING_S),
    )
    return [(span["start"] / SAMPLE_RATE, span["end"] / SAMPLE_RATE) for span in found]


def load_channels(path: Path, sample_rate: int | None = SAMPLE_RATE) -> Tensor:
    """Read a recording with its channels apart; unlike a model's input it may be silent.

    Returns:
        float32 [channels, T] at ``sample_rate``, or at its own for None.

    Raises:
        AudioError: Missing, empty, not audio, truncated, NaN or infinite.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    try:
        samples, rate = soundfile.read(os.fsencode(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path}: not audio that can be read") from error
    if (cut := truncation(path)) is not None:
        raise AudioError(f"{path}: truncated ({cut}); get the whole file")
    wave = torch.from_numpy(samples).T.contiguous()
    if not wave.shape[1]:
        raise AudioError(f"{path}: holds no samples")
    if not wave.isfinite().all():
        raise AudioError(f"{path}: holds NaN or infinite samples; export it again")
    return wave if sample_rate is None else resample(wave, rate, sample_rate)


@cache
def _silero() -> tuple[Any, Any]:
    """The network and what makes spans of its probabilities."""
    num_threads = torch.get_num_threads()
    try:
        from silero_vad import (  # type: ignore[import-untyped]
            get_speech_timestamps,
            load_silero_vad,
        )

        network = load_silero_vad(onnx=True)
    except ImportError as error:
        raise PluginError(
            "finding speech needs the packages silero-vad and onnxruntime; "
            "run pip install 'speechlm[evaluate]'"
        ) from error
    finally:
        torch.set_num_threads(num_threads)  # importing it leaves torch one thread
    return network, get_speech_timestamps
