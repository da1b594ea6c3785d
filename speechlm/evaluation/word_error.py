"""Word errors of recordings whose text is known, by the outside judge."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechlm.errors import InputError
from speechlm.evaluation.intervals import bootstrap_interval, ratio_interval
from speechlm.evaluation.judge import GrammarJudge, unknown_words

DITHER_DB = -50.0
"""Of the noise below everything that the judge hears, against a recording's peak."""
MOST_SENTENCES = 300
"""Sentences that the judge tells apart: what was said and others of the corpus."""


def spoken_words(text: str) -> list[str]:
    """The words of a text as the judge knows them."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def known_sentences(texts: Iterable[str]) -> set[str]:
    """The texts as words, without those that are empty or hold a word unknown to the judge."""
    sentences = {" ".join(spoken_words(text)) for text in texts} - {""}
    unknown = unknown_words({word for each in sentences for word in each.split()})
    return {each for each in sentences if not unknown & set(each.split())}


class SentenceJudge:
    """Hears which of some sentences a recording is.

    A closed set, because the judge is an old recogniser: it hears a voice that it was not made
    for rightly only when it knows what may be said. So these word errors compare recordings
    of the same sentences; they are not those of dictation.

    Args:
        said: Texts of the recordings that will be heard.
        others: Texts to mix them with, up to :data:`MOST_SENTENCES` in all.
        seed: Chooses among the others.

    Raises:
        PluginError: pocketsphinx is not installed.
        InputError: No text has words that it can pronounce.
    """

    def __init__(self, said: Sequence[str], others: Sequence[str], seed: int) -> None:
        sentences = known_sentences(said)
        if not sentences:
            raise InputError("expected recordings with texts of English words, got none")
        mixed = sorted(known_sentences(others) - sentences)
        random.Random(seed).shuffle(mixed)
        self.sentences = sorted(sentences) + mixed[: max(0, MOST_SENTENCES - len(sentences))]
        self._judge = GrammarJudge(self.sentences)

    def errors(
        self, waves: Sequence[Tensor], sample_rate: int, texts: Sequence[str]
    ) -> list[tuple[int, str]]:
        """Words wrong in each recording, inserted ones included, and what was heard."""
        from torchaudio.functional import edit_distance

        heard = self._judge.transcribe_many([dithered(wave) for wave in waves], sample_rate)
        return [
            (edit_distance(spoken_words(text), hypothesis.split()), hypothesis)
            for text, hypothesis in zip(texts, heard, strict=True)
        ]


def dithered(wave: Tensor) -> Tensor:
    """A wave over faint noise.

    Digital silence, which synthesised and edited recordings hold, throws the judge's features
    off: of the demo's unheard voices it takes 36 % of the words wrongly as they are, 8 % with
    noise. What went through a vocoder has noise of its own, and would look better than it is.
    """
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    return wave + 10 ** (DITHER_DB / 20) * wave.abs().amax() * noise.to(wave)


def word_error(errors: Sequence[int], words: Sequence[int], seed: int) -> dict[str, Any]:
    """Errors by words, with a 95 % bootstrap interval over recordings."""
    rows = list(zip(errors, words, strict=True))
    low, high = ratio_interval(rows, seed=seed)
    value = sum(errors) / sum(words)
    return {"word_error": value, "low": low, "high": high, "n": len(rows), "words": sum(words)}


def word_error_difference(
    before: Sequence[int], after: Sequence[int], words: Sequence[int], seed: int
) -> dict[str, Any]:
    """By how much the word error of the same recordings grew, with a paired interval."""
    rows = [(b, a, w) for b, a, w in zip(before, after, words, strict=True)]

    def grown(sums: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
        difference: np.ndarray[Any, Any] = (sums[:, 1] - sums[:, 0]) / sums[:, 2]
        return difference

    low, high = bootstrap_interval(rows, grown, seed=seed)
    value = (sum(after) - sum(before)) / sum(words)
    return {"difference": value, "low": low, "high": high}
