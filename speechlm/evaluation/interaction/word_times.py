"""Words of free speech with their times, by the recognizer that comes with pocketsphinx.

It is an old recognizer with a general language model: good for how many words come when, less
so for which. Whoever has a better transcript brings it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from speechlm.errors import PluginError
from speechlm.evaluation.interaction.full_duplex import Word
from speechlm.evaluation.interaction.turns import Span
from speechlm.evaluation.interaction.voice_activity import SAMPLE_RATE
from speechlm.evaluation.judge import ACTIVE_LEVEL, PADDING_S

RECOGNIZER = "pocketsphinx"
FRAMES_A_SECOND = 100


def recognize_words(wave: Tensor, spans: Sequence[Span]) -> list[Word]:
    """Write down what is said.

    Args:
        wave: float32 [T] at 16 kHz.
        spans: Where it is speech; nothing else is listened to.

    Raises:
        PluginError: pocketsphinx is not installed.
    """
    words: list[Word] = []
    for start_s, end_s in spans:
        part = wave[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
        for text, begin_s, stop_s in _recognize(part):
            begin_s, stop_s = begin_s + start_s, stop_s + start_s
            words.append(Word(text, max(start_s, begin_s), min(end_s, stop_s)))
    return words


def _recognize(wave: Tensor) -> list[tuple[str, float, float]]:
    decoder = _decoder()
    samples = wave.numpy() * (ACTIVE_LEVEL / max(float(wave.square().mean().sqrt()), 1e-6))
    padding = np.zeros(round(PADDING_S * SAMPLE_RATE), dtype=np.float32)
    padded = np.concatenate([padding, samples.clip(-1.0, 1.0), padding])
    # The features' running mean would carry one stretch's channel over to the next.
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw((padded * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    return [
        (
            segment.word.partition("(")[0],  # "the(2)" is another pronunciation of "the"
            segment.start_frame / FRAMES_A_SECOND - PADDING_S,
            (segment.end_frame + 1) / FRAMES_A_SECOND - PADDING_S,
        )
        for segment in decoder.seg() or ()
        if segment.word[0] not in "<["  # silence and noise
    ]


@cache
def _decoder() -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise PluginError(
            "finding words needs the package pocketsphinx; run pip install 'speechlm[evaluate]', "
            "or bring an output.json beside each recording"
        ) from error
    return pocketsphinx.Decoder(loglevel="FATAL", samprate=SAMPLE_RATE)
