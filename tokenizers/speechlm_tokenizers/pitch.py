"""Pitch by Praat, in windows on a fixed grid: a stream hears exactly what the whole hears.

Praat looks for the most plausible path of F0 through all of a sound, so another cut would give
another path. Here it always sees windows of one length, a block of unit frames amid its context,
zeros where the recording has not begun or is over; and what counts as silence is measured by
the loudest sample up to the window's end, as Praat does by the loudest of all.

Source:
    Boersma 1993, through Praat's own code (praat-parselmouth).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.errors import PluginError

STEP_S = 0.01
"""Praat measures about as often, and each unit frame takes the mean of what it holds, s."""
SILENCE = 0.03
"""Praat's threshold: a frame whose peak is below this part of the loudest is hardly voiced."""


class Windows:
    """Cuts a stream of samples into blocks of one size, each amid its context.

    Args:
        block: Samples of a block.
        context: Samples before and after it; zeros beyond the ends of the recording.
    """

    def __init__(self, block: int, context: int) -> None:
        self._block, self._context = block, context
        self._held = torch.zeros(context)
        self._unread = 0
        """Samples pushed whose block has not been given."""

    def push(self, samples: Tensor) -> list[Tensor]:
        """Take [n]; give every window that is complete, [context + block + context]."""
        self._held = torch.cat([self._held, samples])
        self._unread += len(samples)
        return self._whole()

    def finish(self) -> list[Tensor]:
        """Give the windows of what is left, the last one filled up with zeros."""
        missing = -self._unread % self._block + self._context
        self._held = torch.cat([self._held, self._held.new_zeros(missing)])
        return self._whole()

    def _whole(self) -> list[Tensor]:
        windows: list[Tensor] = []
        start, size = 0, self._block + 2 * self._context
        while start + size <= len(self._held) and self._unread > 0:
            windows.append(self._held[start : start + size])
            start += self._block
            self._unread -= self._block
        self._held = self._held[start:].clone()
        return windows


class PitchTracker:
    """F0 of unit frames, a window at a time.

    Args:
        sample_rate: Of the windows, Hz.
        hop_length: Samples a unit frame.
        block: Unit frames a window is for.
        context: Unit frames on each side of them.
        floor_hz: Lowest pitch looked for.
        ceiling_hz: Highest.

    Raises:
        PluginError: praat-parselmouth is not installed.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        hop_length: int,
        block: int,
        context: int,
        floor_hz: float,
        ceiling_hz: float,
    ) -> None:
        self._praat = _praat()
        self._sample_rate = sample_rate
        self._floor_hz, self._ceiling_hz = floor_hz, ceiling_hz
        self._hop_s = hop_length / sample_rate
        self._block, self._context = block, context
        self._step_s = self._hop_s / max(1, round(self._hop_s / STEP_S))
        # Praat centres its measurements in a sound, three periods of the floor each. Half a step
        # more on each side puts them in the middle of steps where they would be on their edges.
        reach = math.ceil(3 / floor_hz / self._step_s - 1e-9)
        self._lead = 0 if reach % 2 else round(self._step_s * sample_rate / 2)

    def track(self, window: Tensor, loudest: float) -> tuple[Tensor, Tensor]:
        """Measure the frames of a window's block.

        Args:
            window: float32 [(context + block + context) * hop_length].
            loudest: The greatest magnitude of any sample so far, the window's included.

        Returns:
            log_f0: Natural logarithm of Hz, float64 [block]; 0 where unvoiced.
            voiced: bool [block]; at least half of the frame is.
        """
        log_f0 = torch.zeros(self._block, dtype=torch.float64)
        peak = float((window - window.mean()).abs().max())
        if peak == 0.0:
            return log_f0, log_f0.bool()
        # A sample more, so that how many measurements fit in is not left to rounding.
        samples = F.pad(window.double(), (self._lead, self._lead + 1)).numpy()
        pitch = self._praat.Sound(samples, self._sample_rate).to_pitch_ac(
            time_step=self._step_s,
            pitch_floor=self._floor_hz,
            pitch_ceiling=self._ceiling_hz,
            silence_threshold=min(1.0, SILENCE * loudest / peak),
        )
        found = torch.from_numpy(pitch.selected_array["frequency"].copy())
        times = torch.from_numpy(pitch.xs()) - self._lead / self._sample_rate
        frames = (times / self._hop_s).floor().long() - self._context
        inside = (frames >= 0) & (frames < self._block)
        found, frames = found[inside], frames[inside]
        voiced = found > 0
        counts = torch.zeros(2, self._block, dtype=torch.float64)
        counts[0].index_add_(0, frames, torch.ones_like(found))
        counts[1].index_add_(0, frames, voiced.double())
        log_f0.index_add_(0, frames[voiced], found[voiced].log())
        is_voiced = (counts[1] > 0) & (2 * counts[1] >= counts[0])
        return torch.where(is_voiced, log_f0 / counts[1].clamp(min=1), 0.0), is_voiced


def _praat() -> Any:
    try:
        return importlib.import_module("parselmouth")
    except ImportError as error:
        raise PluginError(
            "pitch is measured by Praat, which is not installed: pip install 'speechlm[prosody]', "
            "or leave f0 out of tokenizer.options.streams"
        ) from error
