"""A dialogue on disk: both sides in time with each other, its events, and a picture of it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from speechlm.audio import save_audio
from speechlm.dialogue.simulate import Dialogue
from speechlm.files import write_aside

MARKS = {"SpeechStopped": "#888888", "Backchannel": "#2a9d8f", "ResponseEnded": "#888888"}
"""Events that the picture shows, and their colours."""
SIDES = (("user", "#3a6ea5"), ("model", "#c8553d"))


def write_dialogue(folder: Path, dialogue: Dialogue) -> None:
    """Write ``input.wav``, ``output.wav``, ``stereo.wav`` (user left, model right),
    ``events.jsonl`` and, where matplotlib is installed, ``timeline.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    rate = dialogue.sample_rate
    save_audio(folder / "input.wav", dialogue.input, rate)
    save_audio(folder / "output.wav", dialogue.output, rate)
    both = torch.stack([dialogue.input, dialogue.output], dim=1).clamp(-1.0, 1.0)
    with write_aside(folder / "stereo.wav") as aside:
        soundfile.write(aside, both.numpy(), rate)
    with write_aside(folder / "events.jsonl") as aside:
        lines = (json.dumps(event, ensure_ascii=False) + "\n" for event in dialogue.events)
        aside.write_text("".join(lines), encoding="utf-8")
    if find_spec("matplotlib"):
        draw_timeline(folder / "timeline.png", dialogue)


def draw_timeline(path: Path, dialogue: Dialogue) -> None:
    """Both sides below each other, with what was decided when."""
    from matplotlib.figure import Figure

    duration_s = len(dialogue.input) / dialogue.sample_rate
    figure = Figure(figsize=(max(6.0, min(24.0, 0.8 * duration_s)), 3.2), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for axis, (name, colour), wave in zip(
        axes, SIDES, (dialogue.input, dialogue.output), strict=True
    ):
        times, peaks = _envelope(wave, dialogue.sample_rate)
        axis.fill_between(times, -peaks, peaks, color=colour, linewidth=0)
        axis.set_ylabel(name)
        axis.set_yticks([])
        axis.set_ylim(-1, 1)
        axis.spines[["top", "right"]].set_visible(False)
        for start_s, end_s, label in _spans(dialogue.events, name):
            axis.axvspan(start_s, end_s, color=colour, alpha=0.12, linewidth=0)
            axis.text(start_s, 0.98, label, fontsize=7, va="top", ha="left", clip_on=True)
        for event in dialogue.events:
            if event["type"] in MARKS:
                axis.axvline(event["time_s"], color=MARKS[event["type"]], linewidth=0.8, ls=":")
    axes[-1].set_xlim(0, max(duration_s, 0.1))
    axes[-1].set_xlabel("seconds")
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=110, format="png")


def _envelope(wave: Tensor, rate: int) -> tuple[Any, Any]:
    """Times, s, and peaks of stretches of 10 ms, NumPy [n] each."""
    size = rate // 100
    whole = len(wave) // size
    peaks = wave[: whole * size].reshape(whole, size).abs().amax(dim=1)
    return (torch.arange(whole) * size / rate).numpy(), peaks.numpy()


def _spans(events: list[dict[str, Any]], side: str) -> list[tuple[float, float, str]]:
    """When a side was speaking, and what, as far as it is known."""
    spans = []
    start: dict[str, Any] | None = None
    for event in events:
        if event["type"] == f"{side}.started":
            start = event
        elif event["type"] == f"{side}.stopped" and start is not None:
            label = start.get("as") or start.get("say") or start.get("play") or ""
            spans.append((start["time_s"], event["time_s"], str(label)))
            start = None
    return spans
