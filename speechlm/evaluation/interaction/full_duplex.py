"""Full-Duplex-Bench 1.0 and 1.5: does a model wait, take its turn, back-channel, let itself be cut?

What begins with ``released_`` does what the published scoring does, slips included, so that
figures stand beside the published ones; what stands beside it is what was meant.

Sources:
    Lin et al. 2025, "Full-Duplex-Bench", arXiv:2503.04721; "Full-Duplex-Bench v1.5",
    arXiv:2507.23159; behaviour of github.com/DanielLin94144/Full-Duplex-Bench at d7336bd.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechlm.evaluation.interaction.turns import Span

TURN_S = 1.0
TURN_WORDS = 3
"""Speech of less than :data:`TURN_S` and at most so many words takes no turn."""
BACKCHANNEL_WORDS = 2
"""A short stretch of at most so many words is a backchannel."""
SPEAKING_S = 3.0
"""A longer stretch is a turn, whatever its words."""
BIN_S = 0.2
"""Of the histogram of when backchannels come."""
SMALLEST = 1e-10
"""The published scoring adds so much to each bin."""
USER_PAUSE_S = 0.6
MODEL_PAUSE_S = 0.5
"""Up to these, stretches of the user's and of the model's speech are one."""


@dataclass(frozen=True, slots=True)
class Word:
    """What was said when, seconds."""

    text: str
    start_s: float | None
    end_s: float | None
    """Some recognizers do not tell where the last word ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backchannels:
    """What a listener's output is taken for."""

    takes_turn: bool
    spans: tuple[Span, ...]
    """Of the backchannels."""


def takes_turn(words: Sequence[Word]) -> bool:
    """Whether words are a turn: they last a second or more, or are more than three."""
    if not words:
        return False
    return len(words) > TURN_WORDS or _lasting_s(words) >= TURN_S


def released_backchannels(spans: Sequence[Span], words: Sequence[Word]) -> Backchannels:
    """As published: the last stretch alone decides, and stretches that take the turn count too.

    Args:
        spans: As :func:`released_spans` gives them.
        words: What is said in them.
    """
    turn = False
    found: list[Span] = []
    for span in spans:
        if span[1] - span[0] > SPEAKING_S:
            return Backchannels(takes_turn=True, spans=tuple(found))
        turn = not _is_backchannel(span, words)
        found.append(span)
    return Backchannels(takes_turn=turn, spans=tuple(found))


def find_backchannels(spans: Sequence[Span], words: Sequence[Word]) -> Backchannels:
    """Short stretches of few words; any other takes the turn."""
    found = tuple(span for span in spans if _is_backchannel(span, words))
    return Backchannels(takes_turn=len(found) < len(spans), spans=found)


def released_spans(spans: Sequence[Span], duration_s: float) -> list[Span]:
    """Rounded to a tenth of a second, as the published scoring has them."""
    return [(round(start, 1), min(round(end, 1), duration_s)) for start, end in spans]


def backchannel_histogram(spans: Sequence[Span], duration_s: float) -> npt.NDArray[np.float64]:
    """In how many backchannels each :data:`BIN_S` of a recording lies, float64 [N]."""
    counts = np.zeros(int(duration_s / BIN_S) + 1)
    for start, end in spans:
        counts[int(start / BIN_S) : int(end / BIN_S) + 1] += 1
    return counts


def released_jsd(spans: Sequence[Span], duration_s: float, people: Sequence[float]) -> float:
    """As published: the root of the divergence in nats, at most 0.83; but 1 without backchannels.

    Args:
        spans: Of the backchannels, seconds.
        duration_s: Of the recording.
        people: When people would give one, a share a bin; stretched to the recording.
    """
    if not spans:
        return 1.0
    counts = backchannel_histogram(spans, duration_s) + SMALLEST
    return float(np.sqrt(_divergence(counts, _stretch(people, len(counts)))))


def timing_jsd(spans: Sequence[Span], duration_s: float, people: Sequence[float]) -> float:
    """The Jensen-Shannon divergence in bits: 0 if the model's moments are people's, 1 if none is.

    Without any backchannel it is 1. Arguments as :func:`released_jsd`.

    Source:
        Lin 1991, "Divergence measures based on the Shannon entropy".
    """
    if not spans:
        return 1.0
    counts = backchannel_histogram(spans, duration_s)
    return _divergence(counts, _stretch(people, len(counts))) / float(np.log(2))


def join_spans(spans: Sequence[Span], pause_s: float) -> list[Span]:
    """Make one of stretches of speech that are at most ``pause_s`` apart."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] <= pause_s:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def released_stops(user: Sequence[Span], model: Sequence[Span]) -> list[Span]:
    """All stretches in which both speak, as 1.5 has them, by their end, rounded to ms.

    Args:
        user: Stretches of speech, joined at :data:`USER_PAUSE_S`.
        model: Joined at :data:`MODEL_PAUSE_S`.
    """
    both = [(max(a, c), min(b, d)) for a, b in user for c, d in model if max(a, c) < min(b, d)]
    return [_to_ms(span) for span in sorted(both, key=lambda span: span[1])]


def released_responses(user: Sequence[Span], model: Sequence[Span]) -> list[Span]:
    """From where the user ends to where the model next begins; arguments as above.

    Of several ends before one begin, the last counts; none is left out for lying far back or
    within the model's speech.
    """
    found: list[Span] = []
    previous = -np.inf
    for begin, _ in model:
        ends = [end for _, end in user if previous <= end < begin]
        if ends:
            found.append(_to_ms((max(ends), begin)))
        previous = begin
    return found


def stop_latency(event: Span, model: Sequence[Span]) -> float | None:
    """How long the model talks on once the user has begun to, seconds.

    Args:
        event: When the user interrupts.
        model: When the model speaks, joined at :data:`MODEL_PAUSE_S`.

    Returns:
        None if it did not speak when the user began.
    """
    return next((end - event[0] for start, end in model if start < event[0] < end), None)


def response_latency(event: Span, model: Sequence[Span]) -> float | None:
    """From the end of the user's words to where the model next begins, seconds; None if never."""
    return next((start - event[1] for start, _ in model if start > event[1]), None)


def rating_question(context: str, interruption: str, reply: str) -> str:
    """What a judge is asked about a reply to an interruption.

    Args:
        context: What the user had asked before.
        interruption: What the user said when cutting in.
        reply: What the model said after that.
    """
    return (
        "A user talks to a voice assistant and cuts in while it is answering. How well does "
        "what the assistant says afterwards suit what the user said when cutting in?\n"
        "0: nothing to do with it. 1: hardly anything. 2: a little. 3: it is on the subject. "
        "4: it fits well. 5: it is just what was asked for.\n\n"
        f"Before: {context}\nCutting in: {interruption}\nThe assistant: {reply}\n\n"
        "Give a reason in one or two sentences, then a last line 'Rating: N', N from 0 to 5."
    )


def parse_rating(answer: str) -> int | None:
    """The rating that a judge gave last, 0 to 5; None if there is none."""
    found = re.findall(r"\brat(?:ing|e)\b[^\d\n]*(\d+)(?!\d|\.\d)", answer, re.IGNORECASE)
    return int(found[-1]) if found and int(found[-1]) <= 5 else None


def _lasting_s(words: Sequence[Word]) -> float:
    first, last = words[0].start_s, words[-1]
    until = last.start_s if last.end_s is None else last.end_s
    return 0.0 if first is None or until is None else until - first


def _is_backchannel(span: Span, words: Sequence[Word]) -> bool:
    num_words = sum(_falls_into(word, span) for word in words)
    return span[1] - span[0] < TURN_S and num_words <= BACKCHANNEL_WORDS


def _falls_into(word: Word, span: Span) -> bool:
    if word.start_s is None or (word.end_s is None and word.start_s < span[1]):
        return False
    end_s = word.start_s if word.end_s is None else word.end_s
    return word.start_s <= span[1] and (word.start_s >= span[0] or end_s > span[0])


def _stretch(shares: Sequence[float], size: int) -> npt.NDArray[np.float64]:
    """Interpolate to another number of bins, from end to end."""
    return np.interp(np.linspace(0, 1, size), np.linspace(0, 1, len(shares)), shares)


def _divergence(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Jensen-Shannon, in nats, of two histograms that need not sum to 1."""
    total = 0.0
    shares = first / first.sum(), second / second.sum()
    middle = (shares[0] + shares[1]) / 2
    for share in shares:
        some = share > 0
        total += float(np.sum(share[some] * np.log(share[some] / middle[some]))) / 2
    return max(0.0, total)


def _to_ms(span: Span) -> Span:
    return round(span[0], 3), round(span[1], 3)
