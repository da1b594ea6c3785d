"""Full-Duplex-Bench in small, made on the spot: voices of espeak-ng, whose times are exact.

Four situations in the published layout: a pause within a question, the end of a question, a
question that cuts into the answer to another, and a story to listen to. Figures are not
comparable with papers; silence between words is digital, and what is said is what the demo knows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from speechlm.audio import save_audio
from speechlm.config import CorpusConfig
from speechlm.data.espeak import Voice, restart, speak
from speechlm.data.human import human_clips
from speechlm.data.making import split_voices
from speechlm.data.questions import questions
from speechlm.data.rendering import MARGIN_S, SAMPLE_RATE, hear, trim
from speechlm.evaluation.interaction.full_duplex import BIN_S
from speechlm.evaluation.tasks.full_duplex import PEOPLE_NAME, run_samples
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.results import Result
from speechlm.files import write_folder_aside, write_json
from speechlm.progress import progress

NUM_SAMPLES = 8
"""Of each situation."""
SITUATIONS = ("pause_handling", "smooth_turn_taking", "user_interruption", "backchannel")
LEAD_S = 0.3
"""Silence before the user's first word."""
PAUSE_S = (0.4, 1.2)
"""How long the user pauses within a question: from and to."""
PATIENCE_S = (1.0, 1.8)
"""From the end of a question to where the user cuts into its answer."""
REST_S = (0.3, 0.8)
"""Between two sentences of a story."""
ANSWER_S = 3.5
"""Silence after the user's last word, for the answer."""
STORY_SENTENCES = 2
LISTENER_S = 0.6
"""A listener's backchannel begins within this after a sentence."""
ANSWERED_S = 0.2
"""People answer so soon (Stivers et al. 2009); where the published annotation has the answer."""


def run_mini_full_duplex(job: Job) -> Iterator[Result]:
    """Situations that are made on the spot."""
    make_full_duplex(job.made(), job.seed)
    yield from run_samples(job, job.made())


def make_full_duplex(folder: Path, seed: int) -> None:
    """Write every situation; what is there already is kept.

    Raises:
        PluginError: espeak-ng is not installed.
    """
    if folder.is_dir():
        return
    voices = split_voices(CorpusConfig(), seed)["test"]
    restart()
    with (
        write_folder_aside(folder) as aside,
        progress("making situations", NUM_SAMPLES * len(SITUATIONS), "samples") as advance,
    ):
        for situation in SITUATIONS:
            people = {}
            for number in range(1, NUM_SAMPLES + 1):
                draw = random.Random(f"mini-fdb {seed} {situation} {number}")
                here = aside / situation / str(number)
                here.mkdir(parents=True)
                wave, shares = _make(situation, here, draw.choice(voices), draw)
                save_audio(here / "input.wav", wave, SAMPLE_RATE)
                if shares:
                    people[str(number)] = shares
                advance()
            if people:
                write_json(aside / situation / PEOPLE_NAME, people)


def _make(
    situation: str, here: Path, voice: Voice, draw: random.Random
) -> tuple[Tensor, list[float]]:
    """One input with its annotation; and when people would give a backchannel."""
    asked = [draw.choice(one.wordings) for one in draw.sample(questions(), 2)]
    parts = [_silence(LEAD_S)]
    shares: list[float] = []
    if situation == "pause_handling":
        wave, words = _say(asked[0], voice)
        cut_s = words[len(words) // 2][1]
        pause_s = draw.uniform(*PAUSE_S)
        cut = round(cut_s * SAMPLE_RATE)
        parts += [wave[:cut], _silence(pause_s), wave[cut:]]
        start_s = LEAD_S + cut_s
        times = [start_s, start_s + pause_s]
        write_json(here / "pause.json", [{"text": "[PAUSE]", "timestamp": times}])
    elif situation == "smooth_turn_taking":
        parts += [_say(asked[0], voice)[0], _silence(ANSWER_S)]
        end_s = _length_s(parts[:-1]) - MARGIN_S
        times = [end_s, end_s + ANSWERED_S]
        write_json(here / "turn_taking.json", [{"text": "[TURN-TAKING]", "timestamp": times}])
    elif situation == "user_interruption":
        parts += [_say(asked[0], voice)[0], _silence(draw.uniform(*PATIENCE_S))]
        start_s = _length_s(parts) + MARGIN_S
        parts.append(_say(asked[1], voice)[0])
        times = [start_s, _length_s(parts) - MARGIN_S]
        told = {"context": asked[0], "interrupt": asked[1], "timestamp": times}
        write_json(here / "interrupt.json", [told])
        parts.append(_silence(ANSWER_S))
    else:
        ends = []
        texts = [clip.text for clip in human_clips("prompts").values()]
        for text in draw.sample(texts, STORY_SENTENCES):
            parts.append(_say(text, voice)[0])
            ends.append(_length_s(parts) - MARGIN_S)
            parts.append(_silence(draw.uniform(*REST_S)))
        shares = _listeners(ends, _length_s(parts))
    return torch.cat(parts), shares


def _listeners(ends: list[float], duration_s: float) -> list[float]:
    """When people would give a backchannel, a share a bin: soon after a sentence."""
    counts = [0.0] * (int(duration_s / BIN_S) + 1)
    for end in ends:
        first = math.ceil(end / BIN_S)
        for place in range(first, min(len(counts), first + round(LISTENER_S / BIN_S))):
            counts[place] += 1
    return [count / sum(counts) for count in counts]


def _say(text: str, voice: Voice) -> tuple[Tensor, list[tuple[str, float, float]]]:
    """float32 [T] at 16 kHz with :data:`MARGIN_S` of silence around it, and its words' times."""
    speech = speak(text, voice)
    start, end = trim(speech.samples, speech.sample_rate)
    wave = hear(torch.tensor(speech.samples[start:end]), speech.sample_rate, None)
    start_s = start / speech.sample_rate
    return wave, [(word, begin - start_s, stop - start_s) for word, begin, stop in speech.words]


def _silence(duration_s: float) -> Tensor:
    return torch.zeros(round(duration_s * SAMPLE_RATE))


def _length_s(parts: list[Tensor]) -> float:
    return sum(map(len, parts)) / SAMPLE_RATE
