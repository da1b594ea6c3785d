"""A planned dialogue as two channels in time with each other, and what happens in it when.

The truth is exact, for it is not found by listening: it is where the samples were put.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from speechlm.data.dialogues import REMARKED_S, Dialogue, Turn
from speechlm.data.events import Event, Speaker
from speechlm.data.human import SPEAKER, human_clips
from speechlm.data.rendering import MARGIN_S, SAMPLE_RATE, Spans, hear, say

CHANNELS: tuple[Speaker, Speaker] = ("user", "model")
"""Who speaks in which channel."""
GRID_S = 0.08
"""The model's words begin at multiples of this: at a frame of 12.5, 25 and 50 Hz, so that a
word is the same units each time."""
BETWEEN_WORDS_S = 0.04
"""Least silence between the words of an answer."""
FADE_S = 0.02
"""In which a model falls silent that is cut short."""
QUIET = 0.5
"""A back-channel is so loud, beside 1 for a turn."""
NOISE_DB = (-85.0, -55.0)
"""What a microphone always hears, below full scale; and some give digital silence."""
NO_NOISE = 0.3
"""Share of dialogues that have none."""
TAIL_S = 0.6
"""After the last word."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rendered:
    """A dialogue that can be heard."""

    wave: Tensor
    """float32 [2, T] at 16 kHz: the user's channel and the model's."""
    events: tuple[Event, ...]
    """In order of their begin."""
    words: tuple[Spans, Spans]
    """Each channel's words and when; the user's are empty where the voice tells none."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Stage:
    """A dialogue while it is being put together; places in samples."""

    placed: tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]] = field(
        default_factory=lambda: ([], [])
    )
    events: list[Event] = field(default_factory=list)
    words: tuple[Spans, Spans] = field(default_factory=lambda: ([], []))
    end: int = 0
    """Where all have fallen silent."""

    def put(self, speaker: Speaker, start: int, wave: Tensor) -> int:
        """Let somebody be heard; gives where that ends."""
        self.placed[CHANNELS.index(speaker)].append((start, wave))
        stop = start + len(wave)
        self.end = max(self.end, stop)
        return stop


def render_dialogue(dialogue: Dialogue) -> Rendered:
    """Speak a dialogue.

    Raises:
        PluginError: espeak-ng is not installed.
        CorpusError: The voice said nothing.
    """
    stage = _Stage()
    cut_in: int | None = None
    for place, turn in enumerate(dialogue.turns):
        last = place == len(dialogue.turns) - 1
        begin = stage.end + _samples(turn.rest_s) if cut_in is None else cut_in
        done = _ask(stage, dialogue, turn, begin, cuts_in=cut_in is not None)
        cut_in = _answer(stage, dialogue, turn, done, may_cut=not last) if turn.answer else None
        if not turn.answer:
            stage.end = max(stage.end, done) + _samples(REMARKED_S)
    stage.end += _samples(TAIL_S)
    user, model = (_mix(placed, stage.end) for placed in stage.placed)
    user = _noisy(hear(user, SAMPLE_RATE, dialogue.room_seed), dialogue.noise_seed)
    events = [*stage.events, *_gaps(stage.events), *_overlaps(stage.events)]
    events.sort(key=lambda event: (event.start_s, event.end_s))
    return Rendered(wave=torch.stack([user, model]), events=tuple(events), words=stage.words)


def write_dialogue(
    dialogue: Dialogue, path: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Render a dialogue into a FLAC file, 16 kHz, two channels, 16 bits.

    Returns:
        A row of the corpus for each channel, without ``audio``, the model's as the reply to the
        user's; and a row for each event.
    """
    rendered = render_dialogue(dialogue)
    encoded = io.BytesIO()
    soundfile.write(encoded, rendered.wave.T.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path.write_bytes(encoded.getbuffer())
    rows = []
    for channel, speaker in enumerate(CHANNELS):
        said = [event.text for event in rendered.events if event.speaker == speaker]
        row: dict[str, Any] = {
            "id": f"{dialogue.id}.{speaker}",
            "channel": channel,
            "text": " ".join(filter(None, said)),
            "speaker": dialogue.voice.speaker if speaker == "user" else SPEAKER,
            "split": dialogue.split,
        }
        if speaker == "user":
            row["reply"] = f"{dialogue.id}.model"
        if rendered.words[channel]:
            row["words"] = rendered.words[channel]
        rows.append(row)
    return rows, [event.to_dict(dialogue.id) for event in rendered.events]


def _ask(stage: _Stage, dialogue: Dialogue, turn: Turn, begin: int, *, cuts_in: bool) -> int:
    """The user's turn; gives where its last sound ends."""
    wave, words, _ = say(turn.text, dialogue.voice, None)
    margin = _samples(MARGIN_S)
    # Whoever cuts in is heard from there on, without the silence around a rendering.
    start = begin - margin if cuts_in else begin
    if turn.pause_s and len(words) > 1:
        before = min(max(1, round(turn.pause_at * len(words))), len(words) - 1)
        at_s, pause = words[before - 1][2], _samples(turn.pause_s)
        cut = _samples(at_s)
        wave = torch.cat([wave[:cut], torch.zeros(pause), wave[cut:]])
        late = turn.pause_s
        words = words[:before] + [(word, a + late, b + late) for word, a, b in words[before:]]
        stage.events.append(Event("pause", "user", _s(start + cut), _s(start + cut + pause)))
    done = stage.put("user", start, wave) - margin
    stage.words[0].extend(_moved(words, start))
    stage.events.append(Event("turn", "user", _s(start + margin), _s(done), turn.text))
    return done


def _answer(
    stage: _Stage, dialogue: Dialogue, turn: Turn, done: int, *, may_cut: bool
) -> int | None:
    """The model's turn; gives where the user cuts in, None for nowhere."""
    begin = _on_grid(done + _samples(turn.gap_s))
    clips: list[tuple[str, int, Tensor]] = []
    end = begin
    for name in turn.answer:
        start = _on_grid(end + _samples(BETWEEN_WORDS_S)) if clips else begin
        clips.append((name, start, _clip(name)))
        end = start + len(_clip(name))
    moment = begin + round(turn.disturbed_at * (end - begin))
    cut_in = moment if turn.stop_s is not None and may_cut else None
    stop = end if cut_in is None else min(end, cut_in + _samples(turn.stop_s or 0.0))
    clips = [(name, start, wave[: stop - start]) for name, start, wave in clips if start < stop]
    for name, start, wave in clips:
        stage.put("model", start, _faded(wave) if start + len(_clip(name)) > stop else wave)
        stage.words[1].append((name, _s(start), _s(start + len(wave))))
    text = " ".join(name for name, _, _ in clips)
    stage.events.append(Event("turn", "model", _s(begin), _s(stop), text))
    if cut_in is not None:
        stage.events.append(Event("interruption", "user", _s(cut_in), _s(stop)))
    if turn.acknowledgement:
        wave, words, _ = say(turn.acknowledgement, dialogue.voice, None)
        until = stage.put("user", moment, QUIET * wave)
        stage.words[0].extend(_moved(words, moment))
        margin = _samples(MARGIN_S)
        heard = _s(moment + margin), _s(until - margin)
        stage.events.append(Event("backchannel", "user", *heard, turn.acknowledgement))
    return cut_in


def _gaps(events: Sequence[Event]) -> list[Event]:
    """The silences in which the floor changes hands."""
    turns = sorted((e for e in events if e.kind == "turn"), key=lambda event: event.start_s)
    return [
        Event("gap", after.speaker, before.end_s, after.start_s)
        for before, after in pairwise(turns)
        if before.speaker != after.speaker and after.start_s > before.end_s
    ]


def _overlaps(events: Sequence[Event]) -> list[Event]:
    spoken = [event for event in events if event.kind in ("turn", "backchannel")]
    users = [event for event in spoken if event.speaker == "user"]
    both = [
        (max(a.start_s, b.start_s), min(a.end_s, b.end_s), max(a, b, key=lambda e: e.start_s))
        for a in users
        for b in spoken
        if b.speaker == "model"
    ]
    return [Event("overlap", late.speaker, start, end) for start, end, late in both if start < end]


def _mix(placed: Sequence[tuple[int, Tensor]], num_samples: int) -> Tensor:
    mixed = torch.zeros(num_samples)
    for start, wave in placed:
        mixed[start : start + len(wave)] += wave
    return mixed


def _noisy(wave: Tensor, seed: str) -> Tensor:
    """With a microphone's own noise, or none."""
    digest = hashlib.sha256(seed.encode()).digest()[:8]
    draw = np.random.default_rng(int.from_bytes(digest, "little"))
    if draw.random() < NO_NOISE:
        return wave
    level = 10 ** (draw.uniform(*NOISE_DB) / 20)
    noise = torch.tensor(draw.standard_normal(len(wave), dtype=np.float32))
    return (wave + level * noise).clamp(-1.0, 1.0)


def _faded(wave: Tensor) -> Tensor:
    size = min(len(wave), _samples(FADE_S))
    return torch.cat(
        [wave[: len(wave) - size], wave[len(wave) - size :] * torch.linspace(1, 0, size)]
    )


@functools.cache
def _clip(name: str) -> Tensor:
    samples, rate = soundfile.read(human_clips("answers")[name].path, dtype="float32")
    assert rate == SAMPLE_RATE
    return torch.tensor(samples)


def _moved(words: Spans, start: int) -> Spans:
    return [(word, round(_s(start) + a, 3), round(_s(start) + b, 3)) for word, a, b in words]


def _on_grid(place: int) -> int:
    grid = _samples(GRID_S)
    return math.ceil(place / grid) * grid


def _samples(duration_s: float) -> int:
    return round(duration_s * SAMPLE_RATE)


def _s(place: int) -> float:
    return place / SAMPLE_RATE
