"""Which words of a transcribed recording are spoken and which written: interleaved training data.

A recording whose words are aligned becomes content of the layout ``interleave-words``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speechlm.errors import ConfigError, InputError

STRATEGIES = ("random", "span", "poisson")


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """One word of a recording."""

    tokens: tuple[int, ...]
    """Text tokens."""
    start: int
    """Its first unit frame."""
    end: int
    """The frame after its last."""


def choose_spans(
    words: Sequence[Word],
    units: Tensor,
    strategy: str = "poisson",
    *,
    generator: torch.Generator,
    probability: float = 0.5,
    mean_words: float = 10.0,
    fraction: float = 0.3,
) -> dict[str, Tensor]:
    """Choose spans of words to be speech; the others are text.

    Args:
        words: In order, at least one.
        units: Of the whole recording, int64 [1, F].
        strategy: ``random``: every word is speech with ``probability``. ``span``: kinds take
            turns, each for a geometric number of words, ``mean_words`` on average. ``poisson``:
            Poisson spans of ``mean_words`` become speech, never one next to the other, until
            ``fraction`` of the words are.
        generator: Decides every draw.

    Returns:
        Fields of the layout ``interleave-words``. A span of speech has the units from the start
        of its first word to the end of its last; spans that come out empty are left out.

    Raises:
        ConfigError: An unknown strategy.
        InputError: No words, or words out of order.

    Sources:
        Maimon et al. 2025 (SIMS), arXiv:2504.02398; Nguyen et al. 2024 (Spirit-LM),
        arXiv:2402.05755; Zeng et al. 2024 (GLM-4-Voice: λ = 10, 0.3), arXiv:2412.02612.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    starts = [word.start for word in words]
    if not words or starts != sorted(starts) or starts[0] < 0:
        raise InputError(f"expected words in the order of their start, got starts {starts}")
    if strategy == "random":
        draws = torch.rand(len(words), generator=generator)
        spoken = (draws < probability).tolist()
    elif strategy == "span":
        draws = torch.rand(len(words), generator=generator)
        turns = (draws < (torch.tensor([0.5] + [1 / mean_words] * (len(words) - 1)))).long()
        spoken = (turns.cumsum(0) % 2 == 1).tolist()
    else:
        spoken = _poisson(len(words), mean_words, fraction, generator)
    return _content(words, units, spoken)


def _poisson(count: int, mean: float, fraction: float, generator: torch.Generator) -> list[bool]:
    spoken = [False] * count
    wanted = round(fraction * count)
    while wanted > 0:
        length = int(torch.poisson(torch.tensor(float(mean)), generator=generator))
        length = min(max(length, 1), wanted)
        # A span needs a written word, or an end of the recording, on both of its sides.
        places = [
            start
            for start in range(count - length + 1)
            if not any(spoken[max(start - 1, 0) : start + length + 1])
        ]
        if not places:
            if length == 1:
                break
            mean = length / 2
            continue
        start = places[int(torch.randint(len(places), (), generator=generator))]
        spoken[start : start + length] = [True] * length
        wanted -= length
    return spoken


def _content(words: Sequence[Word], units: Tensor, spoken: Sequence[bool]) -> dict[str, Tensor]:
    texts: list[int] = []
    pieces: list[Tensor] = [units[:, :0]]
    spans: list[list[int]] = []
    first = 0
    for at in range(1, len(words) + 1):
        if at < len(words) and spoken[at] == spoken[first]:
            continue
        if spoken[first]:
            piece = units[:, words[first].start : words[at - 1].end]
            pieces.append(piece)
            length = piece.shape[1]
        else:
            tokens = [token for word in words[first:at] for token in word.tokens]
            texts += tokens
            length = len(tokens)
        kind = int(spoken[first])
        if spans and (not length or spans[-1][0] == kind):
            spans[-1][1] += length
        elif length:
            spans.append([kind, length])
        first = at
    return {
        "text": torch.tensor(texts, dtype=torch.int64),
        "speech": torch.cat(pieces, dim=1),
        "spans": torch.tensor(spans or [[0, 0]], dtype=torch.int64),
    }
