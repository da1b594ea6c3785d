"""What is said in a recording, by a recognizer that is there without any download.

pocketsphinx carries an acoustic model of English, a dictionary, a trigram language model of
words and one of phones. It is an old recognizer: it takes a sixth of studio speech wrongly, and
more than half of espeak-ng's. So its word error rates say something beside those of the same
recognizer on the recordings themselves, and nothing alone. Where the answers are known,
:mod:`speechlm.evaluation.judge` and :mod:`speechlm.evaluation.word_error` hear far better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import metadata
from multiprocessing import get_context
from typing import Any, Literal, Protocol

from torch import Tensor

from speechlm.data.corpus import Word
from speechlm.doctor import usable_cores
from speechlm.errors import PluginError
from speechlm.evaluation.judge import PADDING_S, SAMPLE_RATE, to_pcm
from speechlm.evaluation.word_error import dithered, spoken_words

What = Literal["words", "phones"]
FRAME_S = 0.01
UNKNOWN = 1e-7
"""Probability of a word that the word model does not know: less than that of its rarest."""
NO_WORDS = ("<s>", "</s>", "<sil>", "SIL", "[", "+")
"""How what is no word begins: silence, noise, breath."""
SECONDS_A_PROCESS = 20.0
"""Sound for which starting a process, seconds of importing, is worth it."""


class SpeechRecognizer(Protocol):
    """Turns recordings into text."""

    @property
    def name(self) -> str:
        """Recognizer and version, as rows of results say them."""
        ...

    def transcribe_many(self, waves: Sequence[Tensor], sample_rate: int) -> list[str]:
        """The words of each recording float32 [T] at ``sample_rate`` Hz, ``""`` for none."""
        ...


class WordModel(Protocol):
    """Says how probable a text is."""

    @property
    def name(self) -> str: ...

    def log_prob(self, text: str) -> tuple[float, int]:
        """Of a text: the sum of natural logarithms, and of how many tokens, its end included."""
        ...


class Recognizer:
    """Hears words or phones of English in recordings, each as it would alone.

    Raises:
        PluginError: pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        _decoder("words")
        self.name = f"pocketsphinx-{metadata.version('pocketsphinx')}"

    def transcribe_many(
        self, waves: Sequence[Tensor], sample_rate: int, num_workers: int = 0
    ) -> list[str]:
        """The words of each recording, in small letters.

        Args:
            waves: float32 [T] each.
            sample_rate: Their rate, Hz.
            num_workers: Processes; 0 for one a core.
        """
        return [_text(heard) for heard in _hear(waves, sample_rate, "words", num_workers)]

    def phones_many(
        self, waves: Sequence[Tensor], sample_rate: int, num_workers: int = 0
    ) -> list[str]:
        """The phones of each recording (CMUdict's), with spaces between; no word model helps."""
        return [_text(heard) for heard in _hear(waves, sample_rate, "phones", num_workers)]

    def words_many(
        self, waves: Sequence[Tensor], sample_rate: int, num_workers: int = 0
    ) -> list[list[Word]]:
        """The words of each recording and when they are said."""
        return _hear(waves, sample_rate, "words", num_workers)


class TrigramModel:
    """pocketsphinx's language model of English words: three at a time, from news and talk.

    It has never heard of style or sense, and finds "the the the" probable: perplexities stand
    beside auto-BLEU, never alone.

    Raises:
        PluginError: pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        pocketsphinx = _pocketsphinx()
        # A decoder's own model has the weight of words in its probabilities.
        config = pocketsphinx.Config(lw=1.0, wip=1.0, lm=None, loglevel="FATAL")
        self._log = pocketsphinx.LogMath()
        path = pocketsphinx.get_model_path("en-us/en-us.lm.bin")
        self._model = pocketsphinx.NGramModel(config, self._log, path)
        self.name = f"pocketsphinx-{metadata.version('pocketsphinx')}-trigram"

    def log_prob(self, text: str) -> tuple[float, int]:
        """Of a text: the sum of natural logarithms, and of how many words, its end included.

        Args:
            text: Words; capitals and punctuation do not matter. What the model does not know has a
                probability of :data:`UNKNOWN`.
        """
        words = ["<s>", *spoken_words(text), "</s>"]
        total = 0.0
        for place in range(1, len(words)):
            history = words[max(0, place - 2) : place][::-1]
            found = self._log.log_to_ln(self._model.prob([words[place], *history]))
            total += max(found, math.log(UNKNOWN))
        return total, len(words) - 1


def perplexity(log_prob: float, count: int) -> float:
    """``exp`` of the mean negative log-probability; NaN for no tokens."""
    return math.exp(-log_prob / count) if count else math.nan


def _pocketsphinx() -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise PluginError(
            "recognizing speech needs the package pocketsphinx; run "
            "pip install 'speechlm[evaluate]'"
        ) from error
    return pocketsphinx


@cache
def _decoder(what: What) -> Any:
    """One for each process."""
    pocketsphinx = _pocketsphinx()
    if what == "words":
        return pocketsphinx.Decoder(loglevel="FATAL", samprate=SAMPLE_RATE)
    model = pocketsphinx.get_model_path("en-us/en-us-phone.lm.bin")
    return pocketsphinx.Decoder(
        allphone=model, lm=None, lw=2.0, beam=1e-20, pbeam=1e-20, loglevel="FATAL"
    )


def _hear(
    waves: Sequence[Tensor], sample_rate: int, what: What, num_workers: int
) -> list[list[Word]]:
    _decoder(what)
    clips = [to_pcm(dithered(wave), sample_rate) for wave in waves]
    seconds = sum(len(wave) for wave in waves) / sample_rate
    num_workers = min(num_workers or usable_cores(), 1 + int(seconds / SECONDS_A_PROCESS))
    if num_workers < 2:
        return [_recognise(clip, what) for clip in clips]
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_recognise, clips, [what] * len(clips), chunksize=4))


def _recognise(pcm: bytes, what: What) -> list[Word]:
    decoder = _decoder(what)
    # The features' running mean would carry one recording's channel over to the next.
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    found = []
    for segment in decoder.seg() or []:
        if not segment.word.startswith(NO_WORDS):
            start_s = segment.start_frame * FRAME_S - PADDING_S
            end_s = (segment.end_frame + 1) * FRAME_S - PADDING_S
            # "read(2)" is a second way to say it.
            found.append(Word(segment.word.partition("(")[0], max(0.0, start_s), end_s))
    return found


def _text(heard: Sequence[Word]) -> str:
    return " ".join(word.word for word in heard)
