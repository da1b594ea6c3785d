"""How soon a live reply is heard, and whether streams give what the whole gives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.generation.generate import generate_stream
from speechlm.generation.rendering import FIRST_CHUNK_UNITS
from speechlm.units import Units

CHUNK_S = 0.08
"""How much sound a microphone hands over at a time, s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveReply:
    """Where the time of a live answer goes, seconds."""

    listening_s: float
    """Tokenizing the last chunk of the question."""
    steps_s: tuple[float, ...]
    """Drawing each column of the LM; the first one after reading the whole question."""
    chunks_s: tuple[tuple[float, float], ...]
    """Rendering each chunk of :data:`.rendering.FIRST_CHUNK_UNITS` columns, and how long its sound
    lasts."""
    steps_to_sound: int | None
    """Columns before the first sample; None for an answer without any."""
    chunks_to_sound: int

    @property
    def wait_s(self) -> float | None:
        """From the end of the question to the first sample."""
        if self.steps_to_sound is None:
            return None
        rendering_s = sum(spent for spent, _ in self.chunks_s[: self.chunks_to_sound])
        return self.listening_s + sum(self.steps_s[: self.steps_to_sound]) + rendering_s


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
    waits = [live_reply(model, wave, sampling, whole=False).wait_s for wave in questions][1:]
    heard = torch.tensor([wait for wait in waits if wait is not None])
    if not len(heard):
        return {"median_s": None, "p95_s": None, "n": 0}
    median, p95 = torch.quantile(heard, torch.tensor([0.5, 0.95])).tolist()
    return {"median_s": median, "p95_s": p95, "n": len(heard)}


def live_reply(
    model: SpeechLM, wave: Tensor, sampling: SamplingConfig, *, whole: bool
) -> LiveReply:
    """Answer a question that has just ended, and time every step.

    Args:
        wave: float32 [T] at the tokenizer's rate.
        whole: Whether to go on after the first sound.

    Raises:
        InputError: It is longer than the LM's context.
    """
    tokenizer, vocabulary = model.tokenizer, model.lm.vocabulary
    listening, speaking = tokenizer.stream(), model.vocoder.stream(model.reply_voice)
    last = max(0, len(wave) - round(CHUNK_S * tokenizer.sample_rate))
    codes = [listening.push(wave[:last])]
    before = time.perf_counter()
    codes += [listening.push(wave[last:]), listening.finish()]
    question = Units(
        codes=torch.cat(codes, dim=1),
        frame_rate=tokenizer.frame_rate,
        fingerprint=tokenizer.fingerprint,
    )
    listening_s = time.perf_counter() - before
    layout = model.lm.layout
    columns: list[tuple[int, ...]] = []
    steps: list[float] = []
    chunks: list[tuple[float, float]] = []
    steps_to_sound, chunks_to_sound, rendered = None, 0, 0

    def render(last: bool) -> None:
        nonlocal steps_to_sound, chunks_to_sound, rendered
        start = time.perf_counter()
        answer = layout.read(vocabulary, prompt, torch.tensor(columns).T)["answer"]
        sound = speaking.push(answer[:, rendered:])
        if last:
            sound = torch.cat([sound, speaking.finish()])
        rendered = answer.shape[1]
        chunks.append((time.perf_counter() - start, len(sound) / model.sample_rate))
        if len(sound) and steps_to_sound is None:
            steps_to_sound, chunks_to_sound = len(steps), len(chunks)

    before = time.perf_counter()
    prompt = layout.prompt(vocabulary, {"question": question.codes})
    for column in generate_stream(model.lm, prompt, sampling, seed=0):
        columns.append(column)
        steps.append(time.perf_counter() - before)
        if len(columns) % FIRST_CHUNK_UNITS == 0:
            render(last=False)
            if not whole and steps_to_sound is not None:
                break
        before = time.perf_counter()
    else:
        render(last=True)
    return LiveReply(
        listening_s=listening_s,
        steps_s=tuple(steps),
        chunks_s=tuple(chunks),
        steps_to_sound=steps_to_sound,
        chunks_to_sound=chunks_to_sound,
    )


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
