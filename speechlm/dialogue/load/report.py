"""The callers' figures as a table, as a picture, and judged from outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechlm.dialogue.load.caller import Call
from speechlm.dialogue.load.figures import JSON, SHARES
from speechlm.dialogue.load.questions import RATE
from speechlm.files import write_aside

COLUMNS = (
    ("stopped_to_audio", "stopped to audio"),
    ("end_to_audio", "end to audio"),
    ("server_frame_p95", "frame p95"),
    ("onset_to_silence", "barge-in"),
)
"""Figures in ms that have a column, and their heading."""
MEASURES = """\
ms, p50/p95/p99 over the turns. stopped to audio: from the server's word that speech has stopped
to the first sound on the wire; end to audio: from the last word sent, the policy's wait
included; frame p95: of each answer, as the server measured it; barge-in: from the first word
spoken over an answer to its last sound on the wire. holes: share of answers in which a player
with 100 ms of buffer would have had one."""


def judge_calls(calls: Sequence[Call], answers: Sequence[str]) -> JSON:
    """Let the outside judge hear all whole answers to questions whose answer is known.

    Raises:
        PluginError: The judge is not installed.
        InputError: It cannot pronounce an answer.
    """
    from speechlm.evaluation.intervals import wilson_interval
    from speechlm.evaluation.judge import GrammarJudge

    heard = [
        (turn.question.expected, b"".join(turn.answer.sound))
        for call in calls
        for turn in call.turns
        if turn.question.expected and turn.answer is not None and turn.answer.sound
        if turn.answer.status == "completed" and turn.cut_onset_at is None
    ]
    waves = [
        torch.from_numpy(np.frombuffer(sound, "<i2").astype(np.float32) / 32768)
        for _, sound in heard
    ]
    found = GrammarJudge(answers).transcribe_many(waves, RATE)
    right = sum(expected == said for (expected, _), said in zip(heard, found, strict=True))
    low, high = wilson_interval(right, len(heard))
    return {"judged": len(heard), "right": right, "interval": [round(low, 3), round(high, 3)]}


def table(levels: Sequence[JSON]) -> str:
    """One line a number of callers."""
    judged = any("judged" in level for level in levels)
    head = ["callers", "turns", *(name for _, name in COLUMNS), "holes", "real time", "errors"]
    rows = [head + ["right"] * judged + ["held"]]
    for level in levels:
        factor = level["real_time_factor"]
        troubles = level["errors"] | level["refusals"]
        row = [str(level["callers"]), f"{level['answered']}/{level['turns']}"]
        row += [_milliseconds(level[key]) for key, _ in COLUMNS]
        row.append("-" if level["stuttered"] is None else f"{100 * level['stuttered']:.0f} %")
        row.append("-" if factor is None else f"{factor['p95']:.2f}")
        row.append(" ".join(f"{count} {code}" for code, count in troubles.items()) or "0")
        if judged:
            row.append(_right(level.get("judged")))
        rows.append([*row, "yes" if level["held"] else "no"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def draw(path: Path, levels: Sequence[JSON]) -> None:
    """Latency over the number of callers; matplotlib must be there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    marks = zip(SHARES, ("-", "--", ":"), strict=True)
    for share, line in marks:
        for (key, name), colour in zip(COLUMNS[:2], ("tab:blue", "tab:gray"), strict=True):
            points = [(level["callers"], level[key][f"p{share}"]) for level in levels if level[key]]
            if points:
                label = f"{name}, p{share}"
                axes.plot(*zip(*points, strict=True), line, marker="o", color=colour, label=label)
    axes.set_xlabel("callers at once")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.set_xticks([level["callers"] for level in levels])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=2)
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=120, format="png")


def _milliseconds(found: dict[str, Any] | None) -> str:
    return "-" if found is None else "/".join(f"{found[f'p{share}']:.0f}" for share in SHARES)


def _right(judged: JSON | None) -> str:
    if judged is None or not judged["judged"]:
        return "-"
    low, high = judged["interval"]
    return f"{judged['right']}/{judged['judged']} ({100 * low:.0f}..{100 * high:.0f} %)"
