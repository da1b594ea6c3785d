"""Speaking the lines of a benchmark in embedded voices, and writing them down as gold files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from torch import Tensor

from speechlm.config import CorpusConfig
from speechlm.data.espeak import Voice, restart
from speechlm.data.making import split_voices
from speechlm.data.pool import one_thread
from speechlm.data.rendering import SAMPLE_RATE, Spans, say
from speechlm.doctor import usable_cores
from speechlm.progress import progress

WORTH_A_PROCESS = 150
"""Lines for which starting a process, seconds of importing, is worth it."""
BATCH = 32
"""Lines that one process speaks in one go, always from a fresh engine: so they sound the same
whatever the number of processes."""


class Line(NamedTuple):
    """Something to say."""

    text: str
    voice: Voice
    room_seed: str | None = None


class Spoken(NamedTuple):
    """What was said."""

    wave: Tensor
    """float32 [T] at :data:`SAMPLE_RATE`."""
    words: Spans
    """Each with its start and end, seconds."""
    phones: Spans


def held_out_voices(seed: int, count: int) -> list[Voice]:
    """Some of the voices that the demo keeps for its test."""
    return split_voices(CorpusConfig(), seed)["test"][:count]


def speak_all(lines: Sequence[Line], what: str) -> list[Spoken]:
    """Speak lines, in their order, on every core.

    Raises:
        PluginError: espeak-ng is not installed.
    """
    batches = [lines[start : start + BATCH] for start in range(0, len(lines), BATCH)]
    num_workers = min(usable_cores(), 1 + len(lines) // WORTH_A_PROCESS)
    spoken: list[Spoken] = []
    with progress(f"making {what}", len(lines), "recordings") as advance:
        if num_workers < 2:
            with one_thread():
                for batch in batches:
                    spoken += _speak(batch)
                    advance(len(batch))
            return spoken
        context = get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, torch.set_num_threads, (1,)) as pool:
            for batch, found in zip(batches, pool.map(_speak, batches), strict=True):
                spoken += found
                advance(len(batch))
    return spoken


def write_gold(folder: Path, rows: Sequence[Mapping[str, object]], waves: Sequence[Tensor]) -> None:
    """Write recordings and their ``gold.csv``, as the ZeroSpeech challenges publish them.

    Args:
        folder: Made by the caller.
        rows: With ``filename``, without ending, and equal keys.
        waves: float32 [T] of each.
    """
    for row, wave in zip(rows, waves, strict=True):
        write_wave(folder / f"{row['filename']}.wav", wave)
    with (folder / "gold.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_wave(path: Path, wave: Tensor) -> None:
    """Write float32 [T] as 16 kHz WAV of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.numpy(), SAMPLE_RATE, subtype="PCM_16")


def _speak(lines: Sequence[Line]) -> list[Spoken]:
    restart()
    return [Spoken(*say(line.text, line.voice, line.room_seed)) for line in lines]
