"""What an LM reads of the recordings and texts of a pair, and which part of it counts.

A member of a pair may be speech (``.wav``, ``.flac``) or text (``.txt``), and may come after a
prompt, of which likewise. What comes after a prompt is read in up to two ways, since an LM may
have learnt either: as its continuation, one recording, and as the answer to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.bundle import SpeechLM
from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.tasks.pairs import TEXT_SUFFIX, Pair
from speechlm.layouts.grid import LMSequence
from speechlm.layouts.plan import merged_by
from speechlm.model.likelihood import Likelihood, frames_within
from speechlm.units import Units

CONTINUED, ANSWERED = "", "answer_"
"""How the variants of either reading begin."""
SPEECH, TEXT = 1, 0
"""Kinds of span in layouts that interleave them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reading:
    """One member of a pair, as an LM reads it."""

    sequence: LMSequence
    units: Units | None = None
    """All that is heard, where that is one recording: spans of it may be asked for."""
    span: tuple[int, int] | None = None
    """The layout's frames that count; None for all."""
    start_s: float = 0.0
    """Where the member begins in the recording, after the prompt."""
    last: int | None = None
    """How many tokens and units at the end count; None for all."""
    duration_s: float | None = None
    """Of the member, where it is speech."""

    def counted(self, found: Likelihood) -> Likelihood:
        """What the member has of its sequence's likelihood."""
        weights = found.weights
        if self.last is not None:
            places = weights.flatten().nonzero().flatten()
            kept = torch.zeros(weights.numel(), dtype=torch.bool)
            kept[places[max(0, len(places) - self.last) :]] = True
            weights = weights * kept.view_as(weights)
        return Likelihood(log_probs=found.log_probs, weights=weights, duration_s=self.duration_s)


def read_members(model: SpeechLM, pair: Pair) -> Mapping[str, tuple[Reading, Reading]]:
    """Both members of a pair, by what the variants of each way to read them begin with.

    Raises:
        AudioError: A recording cannot be used.
        CorpusError: A text is not UTF-8, or empty.
        InputError: There is text, and the LM has none, or does not mix it with speech.
    """
    prompt = None if pair.prompt is None else _load(model, pair.prompt)
    members = [_load(model, path) for path in (pair.positive, pair.negative)]
    every = [part for part in (prompt, *members) if part is not None]
    if not all(isinstance(part, Units) for part in every):
        positive, negative = (_mixed(model, prompt, member) for member in members)
        return {CONTINUED: (positive, negative)}
    heard = [member for member in members if isinstance(member, Units)]
    if not isinstance(prompt, Units):
        positive, negative = (_spoken(model, units, 0) for units in heard)
        return {CONTINUED: (positive, negative)}
    found = {}
    fields = {field.name for field in model.lm.layout.fields}
    for begins, read in ((CONTINUED, _continued), (ANSWERED, _answered)):
        if begins == CONTINUED or {"question", "answer"} <= fields:
            positive, negative = (read(model, prompt, units) for units in heard)
            found[begins] = positive, negative
    return found


def _load(model: SpeechLM, path: Path) -> Units | Tensor:
    if path.suffix != TEXT_SUFFIX:
        rate = model.tokenizer.sample_rate
        return model.encode(load_audio(path, rate), rate)
    if model.lm.text_tokenizer is None:
        raise InputError(f"{path.name}: expected an LM that knows text, this one has units alone")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected UTF-8 text") from error
    if not text:
        raise CorpusError(f"{path}: expected text, got an empty file")
    return model.lm.text_tokenizer.encode(text)


def _spoken(model: SpeechLM, units: Units, prompt_frames: int) -> Reading:
    sequence = model.lm.layout.encode(model.lm.vocabulary, {"speech": units.codes})
    start_s = prompt_frames / units.frame_rate
    span, duration_s = None, units.duration_s
    if prompt_frames:
        span, duration_s = frames_within(model.lm, units, (start_s, units.duration_s))
    return Reading(
        sequence=sequence, units=units, span=span, start_s=start_s, duration_s=duration_s
    )


def _continued(model: SpeechLM, prompt: Units, units: Units) -> Reading:
    codes = torch.cat([prompt.codes, units.codes], dim=1)
    return _spoken(model, replace(units, codes=codes, durations=None), prompt.num_frames)


def _answered(model: SpeechLM, prompt: Units, units: Units) -> Reading:
    layout = model.lm.layout
    content = {"question": prompt.codes, "answer": units.codes}
    merged = merged_by(layout, units.codes)
    return Reading(
        sequence=layout.encode(model.lm.vocabulary, content),
        span=(0, units.num_frames if merged is None else len(merged[1])),
        duration_s=units.duration_s,
    )


def _mixed(model: SpeechLM, prompt: Units | Tensor | None, member: Units | Tensor) -> Reading:
    """Text and speech in one sequence, for layouts that interleave spans of either."""
    layout = model.lm.layout
    if "spans" not in {field.name for field in layout.fields}:
        raise InputError(
            f"expected a layout that reads text by itself, such as interleave-words, got "
            f"{layout.name}"
        )
    texts: list[Tensor] = []
    codes = [torch.zeros(1, 0, dtype=torch.int64)]
    spans: list[list[int]] = []
    for part in (prompt, member):
        if isinstance(part, Units):
            codes.append(part.codes)
            kind, length = SPEECH, part.num_frames
        elif part is not None:
            texts.append(part)
            kind, length = TEXT, len(part)
        else:
            continue
        if spans and spans[-1][0] == kind:
            spans[-1][1] += length
        else:
            spans.append([kind, length])
    content = {
        "text": torch.cat([torch.zeros(0, dtype=torch.int64), *texts]),
        "speech": torch.cat(codes, dim=1),
        "spans": torch.tensor(spans),
    }
    sequence = layout.encode(model.lm.vocabulary, content)
    if isinstance(member, Units):
        return Reading(sequence=sequence, last=member.num_frames, duration_s=member.duration_s)
    return Reading(sequence=sequence, last=len(member))
