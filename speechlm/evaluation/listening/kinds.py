"""The four kinds of listening test, and what a listener is asked in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

KindName = Literal["mos", "cmos", "ab", "mushra"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How one trial is heard and answered."""

    question: str
    scale: Mapping[int, str]
    """Answers there are with their labels, in the order of the keys 1, 2, ...; of ``mushra`` the
    labels beside the slider from 0 to 100."""
    variant: str
    """Of the rows of results."""
    paired: bool = False
    """Whether two recordings are heard and the second is judged against the first."""


KINDS: Mapping[KindName, Kind] = {
    "mos": Kind(
        question="How natural does this recording sound?",
        scale={1: "bad", 2: "poor", 3: "fair", 4: "good", 5: "excellent"},
        variant="mean",
    ),
    "cmos": Kind(
        question="Which of the two sounds more natural, and by how much?",
        scale={
            -3: "first much better",
            -2: "first better",
            -1: "first slightly better",
            0: "about the same",
            1: "second slightly better",
            2: "second better",
            3: "second much better",
        },
        variant="mean",
        paired=True,
    ),
    "ab": Kind(
        question="Which of the two do you prefer?",
        scale={-1: "the first", 0: "no preference", 1: "the second"},
        variant="preference",
        paired=True,
    ),
    "mushra": Kind(
        question="How close does each recording come to the reference in quality?",
        scale={10: "bad", 30: "poor", 50: "fair", 70: "good", 90: "excellent"},
        variant="mean",
    ),
}
"""MOS and its labels: ITU-T P.800 (absolute category rating); CMOS: the same, annex E (comparison
category rating, -3 to 3); MUSHRA: ITU-R BS.1534-3."""
