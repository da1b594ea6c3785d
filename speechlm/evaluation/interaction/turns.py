"""Who speaks when: the turn statistics of dialogues, from when each of two speakers is active.

An *inter-pausal unit* (IPU) is speech of one speaker bounded by 200 ms of silence or more. Where
both speak there is *overlap*; where none does, a *pause* if the same speaker goes on and a *gap*
if the other one does. What is silent before the first and after the last word is neither.

Sources:
    Nguyen et al. 2022 (dGSLM), arXiv:2203.16502; Heldner and Edlund 2010, "Pauses, gaps and
    overlaps in conversations", for floor transfers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Span = tuple[float, float]
"""From and to, seconds."""
LEAST_SILENCE_S = 0.2
BACKCHANNEL_S = 1.0
"""What is shorter and lies within the other's speech takes no turn: "mm-hmm"."""
KINDS = ("ipu", "overlap", "pause", "gap")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """What happens in one dialogue, or in several taken together."""

    duration_s: float
    durations_s: Mapping[str, tuple[float, ...]]
    """Of each of :data:`KINDS`, seconds."""
    transfers_s: tuple[float, ...]
    """Floor-transfer offsets: from the end of one speaker's turn to the begin of the other's;
    negative where they overlap."""
    backchannels: int = 0

    def per_minute(self, kind: str) -> float:
        """How many there are a minute."""
        return 60 * len(self.durations_s[kind]) / self.duration_s if self.duration_s else math.nan

    def seconds_per_minute(self, kind: str) -> float:
        """How long they last a minute, together."""
        return 60 * sum(self.durations_s[kind]) / self.duration_s if self.duration_s else math.nan


def find_ipus(active: Sequence[Span], least_silence_s: float = LEAST_SILENCE_S) -> list[Span]:
    """Join stretches of a speaker's activity that are nearer than ``least_silence_s``."""
    ipus: list[Span] = []
    for start, end in sorted(active):
        # Sums of decimals miss 0.2 by a little.
        if ipus and start - ipus[-1][1] < least_silence_s - 1e-9:
            ipus[-1] = ipus[-1][0], max(ipus[-1][1], end)
        elif end > start:
            ipus.append((start, end))
    return ipus


def find_turns(first: Sequence[Span], second: Sequence[Span], duration_s: float) -> Turns:
    """The statistics of one dialogue.

    Args:
        first: When the first speaker is active, in any order.
        second: The same of the second.
        duration_s: Of the whole dialogue.
    """
    ipus = [find_ipus(first), find_ipus(second)]
    overlaps = [
        (max(a, c), min(b, d)) for a, b in ipus[0] for c, d in ipus[1] if max(a, c) < min(b, d)
    ]
    pauses: list[float] = []
    gaps: list[float] = []
    spoken = _union(ipus[0], ipus[1])
    for (_, end), (start, _) in pairwise(spoken):
        # Whoever was heard last, and whoever is heard next; both, where they are together.
        before = {speaker for speaker, own in enumerate(ipus) if any(b == end for _, b in own)}
        after = {speaker for speaker, own in enumerate(ipus) if any(a == start for a, _ in own)}
        (pauses if before & after else gaps).append(start - end)
    kept, backchannels = _without_backchannels(ipus)
    durations = {
        "ipu": tuple(end - start for own in ipus for start, end in own),
        "overlap": tuple(end - start for start, end in overlaps),
        "pause": tuple(pauses),
        "gap": tuple(gaps),
    }
    return Turns(
        duration_s=duration_s,
        durations_s=durations,
        transfers_s=tuple(
            start - end
            for (speaker, (_, end)), (other, (start, _)) in pairwise(kept)
            if speaker != other
        ),
        backchannels=backchannels,
    )


def pool(dialogues: Sequence[Turns]) -> Turns:
    """Several dialogues as one: rates are of all their minutes, not means of rates."""
    return Turns(
        duration_s=sum(one.duration_s for one in dialogues),
        durations_s={
            kind: tuple(length for one in dialogues for length in one.durations_s[kind])
            for kind in KINDS
        },
        transfers_s=tuple(offset for one in dialogues for offset in one.transfers_s),
        backchannels=sum(one.backchannels for one in dialogues),
    )


def wasserstein(first: Sequence[float], second: Sequence[float]) -> float:
    """How far two distributions are apart, in their own unit: the area between both.

    NaN where one of them is of nothing.
    """
    if not len(first) or not len(second):
        return math.nan
    a, b = np.sort(np.asarray(first, float)), np.sort(np.asarray(second, float))
    every = np.sort(np.concatenate([a, b]))
    below_a = np.searchsorted(a, every[:-1], side="right") / len(a)
    below_b = np.searchsorted(b, every[:-1], side="right") / len(b)
    return float(np.sum(np.abs(below_a - below_b) * np.diff(every)))


def _union(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """Where anyone speaks."""
    spoken: list[Span] = []
    for start, end in sorted([*first, *second]):
        if spoken and start <= spoken[-1][1]:
            spoken[-1] = spoken[-1][0], max(spoken[-1][1], end)
        else:
            spoken.append((start, end))
    return spoken


def _without_backchannels(ipus: Sequence[Sequence[Span]]) -> tuple[list[tuple[int, Span]], int]:
    """All IPUs by when they begin, with their speaker, and how many backchannels were left out."""
    kept, left_out = [], 0
    for speaker, own in enumerate(ipus):
        for start, end in own:
            inside = any(a <= start and end <= b for a, b in ipus[1 - speaker])
            if inside and end - start < BACKCHANNEL_S:
                left_out += 1
            else:
                kept.append((speaker, (start, end)))
    return sorted(kept, key=lambda one: one[1]), left_out
