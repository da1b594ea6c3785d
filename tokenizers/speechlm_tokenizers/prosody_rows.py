"""The rows that ``prosody`` adds, each measured as a recording comes.

What a row needs of the recording lies in an object a stream; how it is cut cannot change the
outcome, because each looks at nothing but blocks of a fixed size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from speechlm.streaming import Blocks
from speechlm_tokenizers.pitch import PitchTracker, Windows
from speechlm_tokenizers.style import StyleClassifier

QUIET_DB = -50.0
"""A recording is taken to be at least so loud somewhere, dB of full scale: silence throughout
is silence."""


class Sounds:
    """Pitch and energy of one recording, a block of frames at a time.

    Args:
        tracker: Measures pitch; None for energy alone.
        hop_length: Samples a frame.
        block: Frames of a block.
        context: Frames heard before and after it.
    """

    def __init__(
        self, tracker: PitchTracker | None, *, hop_length: int, block: int, context: int
    ) -> None:
        self._tracker = tracker
        self._hop, self._block, self._context = hop_length, block, context
        self._windows = Windows(block * hop_length, context * hop_length)
        self._loudest = 0.0

    def push(self, samples: Tensor) -> list[dict[str, Tensor]]:
        """Take float32 [n]; give what is measured on every block that is complete.

        Returns:
            ``f0`` (natural logarithm of Hz, NaN where unvoiced; with a tracker) and ``energy``
            (dB of full scale), float64 [block] each.
        """
        return [self._measure(window) for window in self._windows.push(samples)]

    def finish(self) -> list[dict[str, Tensor]]:
        """Give the blocks that are left, the last one filled up with silence."""
        return [self._measure(window) for window in self._windows.finish()]

    def _measure(self, window: Tensor) -> dict[str, Tensor]:
        self._loudest = max(self._loudest, float(window.abs().max()))
        edge = self._context * self._hop
        frames = window[edge : len(window) - edge].double().reshape(self._block, -1)
        measured = {"energy": 10 * (frames.square().mean(dim=1) + 1e-10).log10()}
        if self._tracker is not None:
            log_f0, voiced = self._tracker.track(window, self._loudest)
            measured["f0"] = log_f0.where(voiced, torch.nan)
        return measured


class Normaliser:
    """Takes the mean of the voice heard so far out of pitch and energy.

    The mean of a block's frames counts that block too: it is heard before it is given.

    Args:
        means: Of the corpus, what a recording starts from; without an entry for a row, its
            values stay as they are.
        weight: Frames that those count for.
        silence_db: Frames so far below the loudest one so far are silence, dB.
    """

    def __init__(self, means: Mapping[str, float], *, weight: float, silence_db: float) -> None:
        self._totals = {name: mean * weight for name, mean in means.items()}
        self._weights = dict.fromkeys(means, weight)
        self._silence_db = silence_db
        self._loudest_db = QUIET_DB

    def apply(self, block: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalise what was measured on a block; silence becomes NaN, as unvoiced is."""
        energy = block["energy"]
        self._loudest_db = max(self._loudest_db, float(energy.max()))
        silent = energy < self._loudest_db - self._silence_db
        values = {**block, "energy": energy.masked_fill(silent, torch.nan)}
        for name in self._totals:
            heard = values[name][~values[name].isnan()]
            self._totals[name] += float(heard.sum())
            self._weights[name] += len(heard)
            values[name] = values[name] - self._totals[name] / self._weights[name]
        return values


class Rate:
    """How often the unit changed within the last frames of one recording.

    Args:
        window: Frames that count.
    """

    def __init__(self, window: int) -> None:
        self._changes = torch.zeros(window, dtype=torch.int64)
        """Whether each of the last frames began another unit than the one before."""
        self._last = -1

    def push(self, units: Tensor) -> Tensor:
        """Take the units of frames int64 [m]; give their counts, int64 [m].

        Frames before the recording's first count as none.
        """
        if not len(units):
            return units
        before = torch.cat([torch.tensor([self._last]), units[:-1]])
        self._last = int(units[-1])
        window = len(self._changes)
        changes = torch.cat([self._changes, (units != before).long()])
        self._changes = changes[-window:].clone()
        sums = changes.cumsum(0)
        return sums[window:] - sums[:-window]


class Style:
    """The label of each stretch of one recording.

    Args:
        classifier: Gives labels.
        sample_rate: Of the recording, Hz.
        hop_length: Samples a frame.
        window: Frames that get one label.
    """

    def __init__(
        self, classifier: StyleClassifier, *, sample_rate: int, hop_length: int, window: int
    ) -> None:
        self._classifier, self._sample_rate, self._window = classifier, sample_rate, window
        self._blocks = Blocks(window * hop_length)

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n]; give the labels now certain, one a frame, int64 [m]."""
        return self._label(list(self._blocks.push(samples)))

    def finish(self) -> Tensor:
        """Give the labels of what is left, filled up with silence."""
        last = self._blocks.finish()
        return self._label([] if last is None else [last[0]])

    def _label(self, stretches: Sequence[Tensor]) -> Tensor:
        labels = [self._classifier.label(stretch, self._sample_rate) for stretch in stretches]
        return torch.tensor(labels, dtype=torch.int64).repeat_interleave(self._window)
