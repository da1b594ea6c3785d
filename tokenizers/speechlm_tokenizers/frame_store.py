"""A sample of all frames of a corpus, in bounded memory, that survives a kill."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechlm.errors import CheckpointError
from speechlm.files import remove_abandoned, write_aside

SAVE_EVERY_S = 60.0
"""Time between two saves, s: what a kill costs."""
SLACK = 1.25
"""How many times the sample is held before what is too much of it is dropped."""


class FrameStore:
    """A uniform sample of frames, the same whenever and however often it was interrupted.

    Every frame draws a number, by the seed and its recording's place; the lowest stay.
    """

    def __init__(self, size: int, dim: int, seed: int, folder: Path | None = None) -> None:
        """Begin, or go on from what ``folder`` holds.

        Args:
            size: Most frames to keep.
            dim: Features a frame.
            seed: Decides which.
            folder: Where to save to; None for memory alone.
        """
        self._size, self._seed, self._folder = size, seed, folder
        self.num_recordings = 0
        """Recordings taken in so far, those before a kill included."""
        self._numbers = [torch.zeros(0, dtype=torch.float64)]
        self._frames = [torch.zeros(0, dim)]
        self._held = 0
        self._unsaved_from, self._unsaved = 0, 0
        """The first recording that is not saved, and how many of the parts are not."""
        self._rows_saved = 0
        self._saved_at = time.monotonic()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(folder)
            self._resume(folder)

    def add(self, frames: Tensor) -> None:
        """Take the frames of the next recording, float32 [F, D]."""
        place = self._seed * 1_000_003 + self.num_recordings
        generator = torch.Generator().manual_seed(place % 2**63)
        numbers = torch.rand(len(frames), generator=generator, dtype=torch.float64)
        self._append(numbers, frames.float().cpu())
        self._unsaved += 1
        self.num_recordings += 1
        if self._held > SLACK * self._size:
            self._drop()
        if self._folder is not None and time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def frames(self) -> Tensor:
        """The sample, float32 [n, D], n <= ``size``, in the order of the drawn numbers."""
        numbers, frames = torch.cat(self._numbers), torch.cat(self._frames)
        order = numbers.argsort(stable=True)[: self._size]
        return frames[order]

    def save(self) -> None:
        """Write what is not saved yet; a kill from now on costs nothing of it."""
        self._saved_at = time.monotonic()
        if self._folder is None or self.num_recordings == self._unsaved_from:
            return
        everything = self._rows_saved > 2 * self._size
        first = 0 if everything else self._unsaved_from
        start = 0 if everything else len(self._frames) - self._unsaved
        numbers = torch.cat([self._numbers[0][:0], *self._numbers[start:]])
        frames = torch.cat([self._frames[0][:0], *self._frames[start:]])
        path = self._folder / f"frames-{first:09d}-{self.num_recordings:09d}.safetensors"
        with write_aside(path) as aside:
            save_file({"numbers": numbers, "frames": frames.contiguous()}, aside)
        self._rows_saved = len(frames) + (0 if everything else self._rows_saved)
        self._unsaved_from, self._unsaved = self.num_recordings, 0
        if everything:
            for other in self._folder.glob("frames-*.safetensors"):
                if other != path:
                    other.unlink(missing_ok=True)

    def _append(self, numbers: Tensor, frames: Tensor) -> None:
        self._numbers.append(numbers)
        self._frames.append(frames)
        self._held += len(frames)

    def _drop(self) -> None:
        """Keep the lowest numbers, each where it was: what is unsaved stays last."""
        highest = torch.cat(self._numbers).kthvalue(self._size).values
        for index, numbers in enumerate(self._numbers):
            low = numbers <= highest
            self._numbers[index] = numbers[low]
            self._frames[index] = self._frames[index][low]
        self._held = sum(map(len, self._numbers))

    def _resume(self, folder: Path) -> None:
        parts: dict[int, list[tuple[int, Path]]] = {}
        for path in folder.glob("frames-*.safetensors"):
            if found := re.fullmatch(r"frames-(\d+)-(\d+)", path.stem):
                parts.setdefault(int(found[1]), []).append((int(found[2]), path))
        while self.num_recordings in parts:
            # After a kill in between, a file may hold what others hold again: the longest wins.
            self.num_recordings, path = max(parts[self.num_recordings])
            try:
                saved = load_file(path)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}); delete {folder} to begin anew"
                ) from error
            self._append(saved["numbers"], saved["frames"])
            self._rows_saved += len(saved["frames"])
        self._unsaved_from = self.num_recordings
