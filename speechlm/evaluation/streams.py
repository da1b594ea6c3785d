"""How soon a live reply is heard, and whether streams give what the whole gives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechlm.bundle import FIRST_CHUNK_UNITS, SpeechLM
from speechlm.config import SamplingConfig
from speechlm.generation.generate import generate_stream
from speechlm.units import Units

CHUNK_S = 0.08
"""How much sound a microphone hands over at a time, s."""


def first_audio_latency(
    model: SpeechLM, questions: Sequence[Tensor], sampling: SamplingConfig
) -> dict[str, Any]:
    """Time the wait from the end of a question to the first sample of its answer.

    The question was tokenized while it was spoken, all but its last chunk. What is timed is
    that chunk, the LM's reading of the question, its first units, and the vocoder's first sound.

    Args:
        questions: float32 [T] each at the tokenizer's rate; the first one warms up only.

    Returns:
        ``median_s`` and ``p95_s`` (None when no answer had any sound) and ``n``.
    """
    waits = [_wait_s(model, wave, sampling) for wave in questions][1:]
    heard = torch.tensor([wait for wait in waits if wait is not None])
    if not len(heard):
        return {"median_s": None, "p95_s": None, "n": 0}
    median, p95 = torch.quantile(heard, torch.tensor([0.5, 0.95])).tolist()
    return {"median_s": median, "p95_s": p95, "n": len(heard)}


def _wait_s(model: SpeechLM, wave: Tensor, sampling: SamplingConfig) -> float | None:
    """Seconds until the first sample, None for an answer without any."""
    tokenizer, vocabulary = model.tokenizer, model.lm.vocabulary
    listening, speaking = tokenizer.stream(), model.vocoder.stream(model.reply_voice)
    last = max(0, len(wave) - round(CHUNK_S * tokenizer.sample_rate))
    codes = [listening.push(wave[:last])]
    start = time.perf_counter()
    codes += [listening.push(wave[last:]), listening.finish()]
    question = Units(
        codes=torch.cat(codes, dim=1),
        frame_rate=tokenizer.frame_rate,
        fingerprint=tokenizer.fingerprint,
    )
    layout = model.lm.layout
    prompt = layout.prompt(vocabulary, {"question": question.codes})
    columns: list[tuple[int, ...]] = []
    rendered = 0
    for column in generate_stream(model.lm, prompt, sampling, seed=0):
        columns.append(column)
        if len(columns) % FIRST_CHUNK_UNITS == 0:
            answer = layout.read(vocabulary, prompt, torch.tensor(columns).T)["answer"]
            if len(speaking.push(answer[:, rendered:])):
                return time.perf_counter() - start
            rendered = answer.shape[1]
    answer = layout.read(vocabulary, prompt, torch.tensor(columns).T)["answer"]
    rest = [speaking.push(answer[:, rendered:]), speaking.finish()]
    return time.perf_counter() - start if any(len(sound) for sound in rest) else None


def vocoder_agreement(model: SpeechLM, units: Sequence[Units]) -> dict[str, Any]:
    """Compare the vocoder's stream with its rendering of the whole.

    Returns:
        ``streaming`` as the vocoder promises it, ``signal_to_difference_db`` (None when no
        sample differs) and ``n``, the recordings compared.
    """
    signal = difference = 0.0
    voice = model.reply_voice
    for one, whole in zip(units, model.vocoder.decode(units, speaker=voice), strict=True):
        stream = model.vocoder.stream(voice)
        chunks = torch.split(one.expand().codes, FIRST_CHUNK_UNITS, dim=1)
        streamed = torch.cat([*(stream.push(chunk) for chunk in chunks), stream.finish()])
        length = min(len(streamed), len(whole))
        signal += float(whole.double().square().sum())
        difference += float((streamed[:length] - whole[:length]).double().square().sum())
    ratio_db = 10 * torch.tensor(signal / difference).log10().item() if difference else None
    return {
        "streaming": model.vocoder.streaming,
        "signal_to_difference_db": ratio_db,
        "n": len(units),
    }
