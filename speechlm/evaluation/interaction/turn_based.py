"""A model that answers whole questions, placed into a live conversation.

The machine around such a model hears that the user has stopped, waits whether they go on, lets
the model answer, and falls silent when the user speaks again. Here that machine is spelled
out, so that figures of a turn-based model say by what it waited and how long it took.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speechlm.audio import resample
from speechlm.bundle import SpeechLM
from speechlm.evaluation.interaction.full_duplex import join_spans
from speechlm.evaluation.interaction.turns import Span
from speechlm.evaluation.interaction.voice_activity import SAMPLE_RATE

ENDPOINT_S = 0.5
"""So much silence ends the user's turn."""
BARGE_IN_S = 0.25
"""The model falls silent so long after the user has begun to speak."""
MARGIN_S = 0.1
"""Of the recording, before and after the user's turn, that the model hears too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One answer within a conversation."""

    asked_s: float
    """Where the user's turn ends."""
    compute_s: float
    """From there, with all of the turn heard, to the first sample: measured, so never twice the
    same."""
    start_s: float
    end_s: float
    """Where it stops: it is over, the user cut in, or the recording ends. ``start_s`` if the
    user spoke again before it began."""


def converse(
    model: SpeechLM, wave: Tensor, spans: Sequence[Span], seed: int
) -> tuple[Tensor, list[Reply]]:
    """What a model says while a user is speaking.

    Args:
        model: Answers each turn of the user's, without memory of earlier ones.
        wave: The user, float32 [T] at 16 kHz.
        spans: When the user speaks, as :func:`.voice_activity.speech_spans` finds it.
        seed: Of the answers' draw.

    Returns:
        The model, float32 [T] at 16 kHz, in time with the user; and what it is made of.

    Raises:
        InputError: A turn is too long for the model.
    """
    turns = join_spans(spans, ENDPOINT_S)
    begins = [start for start, _ in turns[1:]]
    said = torch.zeros_like(wave)
    replies = []
    for (start, end), again in zip(turns, [*begins, math.inf], strict=False):
        ready = end + ENDPOINT_S
        until = min(again + BARGE_IN_S, len(wave) / SAMPLE_RATE)
        if ready >= until:
            continue
        first = max(0, round((start - MARGIN_S) * SAMPLE_RATE))
        question = wave[first : round((end + MARGIN_S) * SAMPLE_RATE)]
        compute_s, answer = _answer(model, question, seed, until - ready)
        begin = ready + compute_s
        if again <= begin or begin >= until:
            answer = answer[:0]
        place = round(begin * SAMPLE_RATE)
        answer = answer[: round(until * SAMPLE_RATE) - place]
        said[place : place + len(answer)] = answer
        stop = begin + len(answer) / SAMPLE_RATE
        replies.append(Reply(asked_s=end, compute_s=compute_s, start_s=begin, end_s=stop))
    return said, replies


def _answer(model: SpeechLM, question: Tensor, seed: int, most_s: float) -> tuple[float, Tensor]:
    """Seconds to the first sample, and the answer, float32 [T] at 16 kHz, at least ``most_s``
    of it."""
    asked = time.perf_counter()
    compute_s: float | None = None
    chunks: list[Tensor] = []
    for chunk in model.reply_stream(question, SAMPLE_RATE, seed=seed):
        if compute_s is None and len(chunk):
            compute_s = time.perf_counter() - asked
        chunks.append(chunk)
        if sum(map(len, chunks)) >= most_s * model.sample_rate:
            break
    if compute_s is None:  # it has nothing to say
        compute_s = time.perf_counter() - asked
    return compute_s, resample(torch.cat(chunks), model.sample_rate, SAMPLE_RATE)
