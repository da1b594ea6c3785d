"""A small picture of a layout: what each cell of the grid holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speechlm.layouts.grid import Content
from speechlm.layouts.monologue import fit_words
from speechlm.layouts.plan import CONTROL, PAD, TEXT, PlannedLayout
from speechlm.layouts.vocabulary import CONTROLS

LETTERS = {
    "speech": "u",
    "question": "q",
    "answer": "a",
    "self": "u",
    "other": "o",
    "text": "t",
    "question_text": "qt",
    "answer_text": "at",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the picture."""

    label: str
    """``u0:3``: stream 0 of frame 3; ``[end]``: a control; ``·``: fill."""
    kind: int
    """A stream, :data:`~speechlm.layouts.plan.TEXT` or :data:`~speechlm.layouts.plan.CONTROL`."""


def picture(layout: PlannedLayout, content: Content) -> list[list[Cell]]:
    """The cells of a whole sequence, R rows of S."""
    plan, counted = layout.plan(content)
    labels: list[str] = []
    for name, value in counted:
        letter, length = LETTERS[name], value.shape[-1]
        for element in range(value.numel()):
            stream = str(element // length) if value.ndim == 2 else ""
            labels.append(f"{letter}{stream}:{element % length}")
    rows = []
    for cells, kinds, weights in zip(plan.cells, plan.kinds, plan.weights, strict=True):
        row = []
        for cell, kind, weight in zip(cells.tolist(), kinds.tolist(), weights, strict=True):
            if kind != CONTROL:
                row.append(Cell(labels[cell], kind))
            elif cell == PAD and not weight:
                row.append(Cell("·", kind))
            else:
                row.append(Cell(f"[{CONTROLS[cell]}]", kind))
        rows.append(row)
    return rows


def sample_content(
    layout: PlannedLayout, *, num_frames: int, num_tokens: int, asks: bool
) -> dict[str, Tensor]:
    """Zeros for every field, to have something to lay out.

    Args:
        num_frames: F of every field of units.
        num_tokens: T of every text, at most F where it keeps time.
        asks: A question and its answer, where the layout has both templates.
    """
    names = {field.name for field in layout.fields}
    if layout.name == "chain":
        names -= {"speech"}
    elif {"speech", "question"} <= names:
        names -= {"speech"} if asks else {"question", "answer"}
    if "words" in names:
        num_tokens = min(num_tokens, num_frames)
    content: dict[str, Tensor] = {}
    for field in layout.fields:
        if field.name not in names:
            continue
        if field.kind == "units":
            codes = torch.zeros(field.num_streams, num_frames).long()
            if getattr(layout, "collapse", False):  # each stream changes half as often
                codes += torch.arange(num_frames) // 2 ** torch.arange(field.num_streams)[:, None]
            content[field.name] = codes
        elif field.kind == "text":
            content[field.name] = torch.zeros(num_tokens).long()
        elif field.kind == "spans":
            content[field.name] = _sample_spans(num_tokens, num_frames)
    if "words" in names:
        lengths = [num_tokens - num_tokens // 2, num_tokens // 2]
        words = [(at * num_frames // 2, length) for at, length in enumerate(lengths) if length]
        if num_tokens + 1 > num_frames:
            words = [(0, num_tokens)] if num_tokens else []
        content["words"] = fit_words(words, num_frames)
    return content


def _sample_spans(num_tokens: int, num_frames: int) -> Tensor:
    """Speech, text, speech, as far as there are units and tokens."""
    first = num_frames - num_frames // 2
    if num_frames < 2 or not num_tokens:
        spans = [[1, num_frames], [0, num_tokens]]
    else:
        spans = [[1, first], [0, num_tokens], [1, num_frames - first]]
    kept = [span for span in spans if span[1]]
    return torch.tensor(kept or [[1, 0]])


def describe_rows(layout: PlannedLayout) -> list[str]:
    """What each row holds, in words."""
    lines = []
    for kinds in layout.row_kinds:
        streams = [kind for kind in kinds if kind != TEXT]
        parts = ["text"] if TEXT in kinds else []
        if streams:
            plural = "s" if len(streams) > 1 else ""
            parts.append(f"units of stream{plural} {', '.join(map(str, streams))}")
        lines.append(" and ".join(parts))
    return lines
