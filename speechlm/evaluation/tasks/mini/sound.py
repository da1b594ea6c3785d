"""``mini-salmon``: recordings in which the voice, its sex or pitch, noise or room changes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from speechlm.data.espeak import Voice
from speechlm.data.questions import questions
from speechlm.data.rendering import SAMPLE_RATE
from speechlm.evaluation.tasks.mini.speaking import (
    Line,
    Spoken,
    held_out_voices,
    speak_all,
    write_wave,
)

NUM_PAIRS = 25
"""Of each part."""
WOMEN, MEN = ("f1", "f2", "f3", "f4", "f5"), ("m1", "m2", "m3", "m4", "m6")
"""Variants of espeak-ng's voices."""
PITCHES = (30, 80)
NOISES_DB = (-40.0, -15.0)
"""Of the noise below the speech."""


def make_salmon(folder: Path, seed: int) -> None:
    """As SALMon has it: a folder a part, ``sample_N_0`` consistent, ``sample_N_1`` not.

    Both are the same sentence, and the same up to a word in its middle; from there on the second
    goes on in another voice, of the other sex, higher or lower, in another noise or another room.
    """
    draw = random.Random(f"mini-salmon {seed}")
    voices = held_out_voices(seed, 12)
    texts = [question.wordings[-1] for question in questions()]
    lines, parts = [], []
    for part in ("speaker", "gender", "pitch", "room", "background"):
        for number in range(NUM_PAIRS):
            text = draw.choice(texts)
            lines += [line._replace(text=text) for line in _ways(part, number, voices, draw)]
            parts.append((part, number))
    spoken = iter(speak_all(lines, "mini-salmon"))
    for part, number in parts:
        begin, end = next(spoken), next(spoken)
        both = (begin, begin), (begin, end)
        for kind, (first, second) in enumerate(both):
            wave = joined(first, second)
            if part == "background":
                wave = _noisy(wave, kind, draw.randrange(2), f"{seed} {number}")
            write_wave(folder / part / f"sample_{number}_{kind}.wav", wave)


def _ways(part: str, number: int, voices: list[Voice], draw: random.Random) -> tuple[Line, Line]:
    """How the sentence begins, and how the inconsistent one ends."""
    voice, other = draw.sample(voices, 2)
    if part == "speaker":
        return Line("", voice), Line("", other)
    if part == "gender":
        sexes = [draw.choice(WOMEN), draw.choice(MEN)]
        draw.shuffle(sexes)
        first, second = (Voice(name="en-us", variant=variant) for variant in sexes)
        return Line("", first), Line("", second)
    if part == "pitch":
        low, high = (replace(voice, pitch=pitch) for pitch in PITCHES)
        return (Line("", low), Line("", high)) if number % 2 else (Line("", high), Line("", low))
    if part == "room":
        return Line("", voice, f"{number} here"), Line("", voice, f"{number} there")
    return Line("", voice), Line("", voice)


def joined(first: Spoken, second: Spoken) -> Tensor:
    """The first up to the middle word's begin, the second from there on, over 5 ms."""
    place = (len(first.words) + 1) // 2
    cuts = [round(one.words[place][1] * SAMPLE_RATE) for one in (first, second)]
    fade = torch.linspace(0.0, 1.0, round(0.005 * SAMPLE_RATE))
    before, after = first.wave[: cuts[0]].clone(), second.wave[cuts[1] :].clone()
    before[-len(fade) :] *= fade.flip(0)
    after[: len(fade)] *= fade
    return torch.cat([before, after])


def _noisy(wave: Tensor, changes: int, loud: int, seed: str) -> Tensor:
    """With noise of one level, or of another from the middle on."""
    generator = torch.Generator().manual_seed(random.Random(seed).randrange(2**31))
    noise = torch.randn(len(wave), generator=generator) * wave.square().mean().sqrt()
    gains = torch.full((len(wave),), 10 ** (NOISES_DB[loud] / 20))
    if changes:
        gains[len(wave) // 2 :] = 10 ** (NOISES_DB[1 - loud] / 20)
    mixed = wave + gains * noise
    return mixed * (0.7 / mixed.abs().max())
