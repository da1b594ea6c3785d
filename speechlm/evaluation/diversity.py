"""How much generated speech repeats itself: self-BLEU, auto-BLEU and VERT of transcripts.

And, by the same n-grams, how much of what was really said it foretells: BLEU.

Two definitions of auto-BLEU are in use under one name, and differ where a repetition overlaps
itself ("no no no"): GSLM's does not count it, slamkit's does. Both are here, by their names.

Sources:
    Lakhotia et al. 2021 (GSLM), arXiv:2102.01192; Maimon et al. 2025 (slamkit),
    arXiv:2502.15814; VERT: Lakhotia et al. 2021, the geometric mean of both.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

from speechlm.errors import InputError

Mean = Literal["geometric", "arithmetic"]
Words = Sequence[str]


def auto_bleu_gslm(words: Words, most: int = 2, mean: Mean = "geometric") -> float:
    """GSLM's: of each n-gram, does it come again elsewhere without overlap? 0 to 1.

    Args:
        words: Of one utterance; 0 for less than two.
        most: The longest n-grams; shares of all lengths from 1 on are averaged.
        mean: How.
    """
    if len(words) <= 1:
        return 0.0
    shares = []
    for n in range(1, most + 1):
        places = _places(words, n)
        count = len(words) - n + 1
        again = sum(
            found[0] <= place - n or found[-1] >= place + n
            for found in places.values()
            for place in found
        )
        shares.append(again / count if count > 0 else math.nan)
    return _mean(shares, mean)


def auto_bleu_slamkit(words: Words, n: int = 2) -> float:
    """slamkit's: the share of n-grams that come more than once, overlaps included; 0 to 1."""
    places = _places(words, n).values()
    count = sum(len(found) for found in places)
    return sum(len(found) for found in places if len(found) > 1) / count if count else 0.0


def self_bleu(utterances: Sequence[Words], most: int = 2, mean: Mean = "geometric") -> list[float]:
    """BLEU of each utterance with all others as its references, without a length penalty.

    Args:
        utterances: Two or more.
        most: The longest n-grams.
        mean: Of the precisions.

    Returns:
        0 to 1 each; 0 where no word is shared.

    Raises:
        InputError: There are fewer than two.
    """
    if len(utterances) < 2:
        raise InputError(f"self-BLEU compares utterances: expected two, got {len(utterances)}")
    precisions: list[list[float]] = [[] for _ in utterances]
    for n in range(1, most + 1):
        counts = [Counter(_ngrams(words, n)) for words in utterances]
        # The largest count of each n-gram and the next: what all others have, for each of them.
        largest: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for counted in counts:
            for ngram, count in counted.items():
                best = largest[ngram]
                if count > best[0]:
                    best[0], best[1] = count, best[0]
                elif count > best[1]:
                    best[1] = count
        for found, counted in zip(precisions, counts, strict=True):
            matched = 0
            for ngram, count in counted.items():
                first, second = largest[ngram]
                matched += min(count, second if count == first else first)
            found.append(matched / max(1, sum(counted.values())))
    return [0.0 if not found[0] else _mean(found, mean) for found in precisions]


def bleu(hypothesis: Words, references: Sequence[Words], most: int = 2) -> float:
    """How much of a hypothesis is in its references, 0 to 1, without a length penalty.

    GSLM's continuation BLEU takes what was recorded as the hypothesis, and the samples of one
    prompt as its references.

    Args:
        hypothesis: 0 for no words.
        references: Any number; 0 for none.
        most: The longest n-grams; the geometric mean is taken over all lengths from 1 on.
    """
    precisions = []
    for n in range(1, most + 1):
        counted = Counter(_ngrams(hypothesis, n))
        largest: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            largest |= Counter(_ngrams(reference, n))
        matched = sum(min(count, largest[ngram]) for ngram, count in counted.items())
        precisions.append(matched / max(1, sum(counted.values())))
    return _mean(precisions, "geometric") if precisions[0] else 0.0


def vert(self_bleu_share: float, auto_bleu_share: float) -> float:
    """The geometric mean of both, 0 to 1; recorded speech has about 0.11 to 0.19."""
    return math.sqrt(self_bleu_share * auto_bleu_share)


def _mean(shares: Sequence[float], mean: Mean) -> float:
    if mean == "arithmetic":
        return sum(shares) / len(shares)
    # As nltk has it: what never matches counts as the smallest number there is.
    logs = [math.log(share or sys.float_info.min) for share in shares]
    return math.exp(sum(logs) / len(logs))


def _ngrams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def _places(words: Words, n: int) -> dict[tuple[str, ...], list[int]]:
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, ngram in enumerate(_ngrams(words, n)):
        places[ngram].append(place)
    return places
