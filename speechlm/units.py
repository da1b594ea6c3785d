"""Discrete speech units: what tokenizers give, the LM models and vocoders render.

Axis letters, everywhere in the project: ``B`` batch, ``T`` audio samples, ``F`` unit frames,
``K`` codebooks or streams, ``S`` LM positions, ``D`` features, ``V`` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speechlm.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Units:
    """The units of one recording."""

    codes: Tensor
    """Unit ids, int64 [K, F]."""
    frame_rate: float
    """Frames a second before any collapsing, Hz."""
    fingerprint: str
    """Fingerprint of the tokenizer that made them."""
    durations: Tensor | None = None
    """Length of each unit in frames, int64 [F], once repeats are collapsed."""
    variable_rate: bool = False
    """The tokenizer's own units last unequally long, as ``durations`` says where it is known:
    they are no repeats merged, so nothing is collapsed or expanded."""

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != torch.int64:
            raise InputError(
                f"expected units as int64 [K, F], got {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.durations is not None and self.durations.shape != self.codes.shape[1:]:
            raise InputError(
                f"expected one duration a unit, [{self.codes.shape[1]}], "
                f"got {list(self.durations.shape)}"
            )

    @property
    def num_codebooks(self) -> int:
        return self.codes.shape[0]

    @property
    def num_frames(self) -> int:
        """Frames of audio that the units stand for, whether collapsed or not."""
        if self.durations is None:
            return self.codes.shape[1]
        return int(self.durations.sum())

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.frame_rate

    def unit_at(self, frame: int) -> int:
        """The unit that ``frame`` falls into; how many there are, for the frame after the last."""
        if self.durations is None:
            return frame
        ends = self.durations.cumsum(0)
        return int(torch.searchsorted(ends, torch.tensor(frame), right=True))

    def collapse(self) -> Units:
        """Merge runs of equal frames, keeping their lengths; :meth:`expand` undoes it."""
        if self.durations is not None or self.variable_rate:
            return self
        codes, durations = collapse_repeats(self.codes)
        return replace(self, codes=codes, durations=durations)

    def expand(self) -> Units:
        """Repeat every unit for its duration."""
        if self.durations is None or self.variable_rate:
            return self
        codes = self.codes.repeat_interleave(self.durations, dim=1)
        return replace(self, codes=codes, durations=None)


def collapse_repeats(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Merge runs of equal frames and keep how long each run lasted.

    Args:
        codes: Unit ids, int64 [K, F], F >= 0; two frames are equal when all K ids are.

    Returns:
        codes: The frame of each run, int64 [K, U], no two neighbours equal.
        durations: Its length in frames, int64 [U]; ``durations.sum() == F``.

    Source:
        Lakhotia et al. 2021 (GSLM), arXiv:2102.01192.
    """
    if codes.shape[1] == 0:
        return codes, codes.new_zeros(0)
    merged, durations = torch.unique_consecutive(codes, dim=1, return_counts=True)
    return merged, durations
