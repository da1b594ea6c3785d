"""The outside judge: a speech recogniser that this project did not train.

pocketsphinx, whose wheel carries its acoustic model, listens for one of a few known answers:
a JSGF grammar of them. It is an old recogniser and not without mistakes, so what it makes of
the original recordings always stands beside what it makes of anything else.

The recipe below was fixed on studio recordings of single words, never on synthesised ones.
Of 118 such words it understands 114; with pocketsphinx's own settings it understands 109.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from speechlm.errors import InputError, PluginError

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_RATE = 16_000
"""Rate that the recogniser hears, Hz."""
PADDING_S = 0.1
"""Digital silence before and after, s: words that begin at once lose their first sound."""
ACTIVE_LEVEL = 0.035
"""Root mean square that speech is brought to. The features' mean starts at a value that suits
one level of speech, and a single word is too short to move it."""
ACTIVE_RANGE_DB = 30.0
"""Frames this close to the loudest count as speech when the level is measured."""
# Wide beams, and no second pass over the lattice: it prefers words whose end was pruned away.
SEARCH = {"beam": 1e-80, "wbeam": 1e-60, "pbeam": 1e-80, "bestpath": False}

PRONUNCIATIONS = {"uppercase": "AH P ER K EY S", "xray": "EH K S R EY"}
"""Words that the recogniser's dictionary lacks, in its phones (CMUdict)."""


class GrammarJudge:
    """Says which of some known answers a recording is.

    Args:
        words: The answers, each a word or a few words; capitals do not matter.

    Raises:
        PluginError: pocketsphinx is not installed.
        InputError: No answers, or words that its dictionary lacks.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(sorted({" ".join(word.lower().split()) for word in words}))
        if not self.words or "" in self.words:
            raise InputError(f"expected the answers to tell apart, got {list(words)!r}")
        _decoder(self.words)

    def transcribe(self, wave: Tensor, sample_rate: int) -> str:
        """Recognise one recording.

        Args:
            wave: float32 [T] in -1..1.
            sample_rate: Its rate, Hz.

        Returns:
            The likeliest answer, or ``""`` when the recording is like none of them.
        """
        return _recognise(self.words, to_pcm(wave, sample_rate))

    def transcribe_many(
        self, waves: Sequence[Tensor], sample_rate: int, num_workers: int = 0
    ) -> list[str]:
        """Recognise many recordings, each as :meth:`transcribe` does.

        Args:
            waves: float32 [T] each.
            sample_rate: Their rate, Hz.
            num_workers: Processes; 0 for one a core.
        """
        clips = [to_pcm(wave, sample_rate) for wave in waves]
        # A process costs a third of a second to start, which is a dozen words' worth.
        num_workers = min(num_workers or os.cpu_count() or 1, 1 + len(clips) // 32)
        if num_workers < 2:
            return [_recognise(self.words, clip) for clip in clips]
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            return list(pool.map(_recognise, [self.words] * len(clips), clips, chunksize=8))


def unknown_words(words: Iterable[str]) -> set[str]:
    """Those that the judge cannot pronounce.

    Raises:
        PluginError: pocketsphinx is not installed.
    """
    decoder = _decoder(("yes",))
    return {
        word for word in words if decoder.lookup_word(word) is None and word not in PRONUNCIATIONS
    }


@cache
def _decoder(words: tuple[str, ...]) -> Any:
    """One recogniser for each grammar and process."""
    try:
        import pocketsphinx
    except ImportError as error:
        raise PluginError(
            "the judge needs the package pocketsphinx; run pip install 'speechlm[evaluate]'"
        ) from error
    config = pocketsphinx.Config(lm=None, loglevel="FATAL", samprate=SAMPLE_RATE, **SEARCH)
    decoder = pocketsphinx.Decoder(config)
    unknown = []
    for word in sorted({word for answer in words for word in answer.split()}):
        if decoder.lookup_word(word) is None:
            if word in PRONUNCIATIONS:
                decoder.add_word(word, PRONUNCIATIONS[word], update=True)
            else:
                unknown.append(word)
    if unknown:
        raise InputError(
            f"the judge cannot pronounce {', '.join(map(repr, unknown))}: expected words of "
            "CMUdict; add them to PRONUNCIATIONS in speechlm/evaluation/judge.py"
        )
    grammar = f"#JSGF V1.0;\ngrammar answers;\npublic <answer> = {' | '.join(words)} ;"
    decoder.add_jsgf_string("answers", grammar)
    decoder.activate_search("answers")
    return decoder


def _recognise(words: tuple[str, ...], pcm: bytes) -> str:
    decoder = _decoder(words)
    # The features' running mean would carry one recording's channel over to the next.
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=False)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return "" if hypothesis is None else str(hypothesis.hypstr)


def to_pcm(wave: Tensor, sample_rate: int) -> bytes:
    """float32 [T] to 16-bit samples at the recogniser's rate, level and padding."""
    from speechlm.audio import resample

    samples = resample(wave.detach().float().cpu(), sample_rate, SAMPLE_RATE).numpy()
    samples = samples * (ACTIVE_LEVEL / max(_active_level(samples), 1e-6))
    padding = np.zeros(round(PADDING_S * SAMPLE_RATE), dtype=np.float32)
    padded = np.concatenate([padding, samples.clip(-1.0, 1.0), padding])
    return (padded * 32767).astype("<i2").tobytes()


def _active_level(samples: npt.NDArray[np.float32]) -> float:
    """Root mean square of the frames that hold speech, silence around it left out."""
    hop = SAMPLE_RATE // 50
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    if not len(frames):
        return 0.0
    energies = (frames.astype(np.float64) ** 2).mean(axis=1)
    active = energies >= energies.max() * 10 ** (-ACTIVE_RANGE_DB / 10)
    return float(np.sqrt(energies[active].mean()))
