"""Every layout, small, with random content: for properties that must hold of all of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from speechlm.layouts.grid import Grammar, Layout, Prompt
from speechlm.layouts.monologue import fit_words
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary

NUM_UNITS, NUM_TOKENS = 5, 11

CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "flat": ("flat", {"question_weight": 0.5}, 1),
    "flat-collapsed": ("flat", {"collapse": True}, 1),
    "flattened": ("flattened", {"stream_weights": [3, 2, 1]}, 3),
    "parallel": ("parallel", {"question_weight": 0.5}, 3),
    "delay": ("delay", {"stream_weights": [4, 3, 2, 1]}, 4),
    "delay-one": ("delay", {}, 1),
    "delay-moshi": ("delay", {"delays": [0, 2, 2]}, 3),
    "delay-any": ("delay", {"delays": [3, 0, 1, 0]}, 4),
    "coarse-first": ("coarse-first", {"stages": [[0], [2, 1], [3]]}, 4),
    "coarse-first-pairs": ("coarse-first", {"stages": [[0, 1], [2, 3]]}, 4),
    "grouped": ("grouped", {"size": 3}, 1),
    "grouped-one": ("grouped", {"size": 1}, 1),
    "prosody": ("prosody", {"duration_bins": 6, "f0_bins": 7}, 1),
    "prosody-own": ("prosody", {"shift": 0}, 3),
    "merged": ("merged", {"question_weight": 0.5}, 3),
    "merged-within": ("merged", {"within": True, "stream_weights": [3, 2, 1]}, 3),
    "merged-one": ("merged", {}, 1),
    "interleave-words": ("interleave-words", {"text_weight": 0.5}, 1),
    "interleave-chunks": ("interleave-chunks", {"text_chunk": 2, "speech_chunk": 3}, 1),
    "interleave-singly": ("interleave-chunks", {"text_chunk": 1, "speech_chunk": 1}, 1),
    "chain": ("chain", {"question_weight": 0.5}, 1),
    "chain-codec": ("chain", {}, 2),
    "chain-answer": ("chain", {"question_text": False}, 1),
    "chain-speech": ("chain", {"question_text": False, "answer_text": False}, 1),
    "text-parallel": ("text-parallel", {}, 3),
    "text-parallel-plain": ("text-parallel", {"delays": [0, 0, 0]}, 2),
    "text-timed": ("text-parallel", {"timed": True}, 2),
    "text-timed-late": ("text-parallel", {"timed": True, "delays": [2, 0, 1]}, 2),
    "text-timed-early": ("text-parallel", {"timed": True, "delays": [0, 2, 3]}, 2),
    "duplex-pairs": ("duplex", {"other_weight": 0.5}, 1),
    "duplex-codec": ("duplex", {"stream_weights": [2, 1]}, 2),
    "duplex-moshi": ("duplex", {"text": True}, 3),
}


def build_case(case: str) -> tuple[Layout, Vocabulary]:
    """A layout with a vocabulary that fits it."""
    name, options, num_codebooks = CASES[case]
    layout = build_layout(name, options, num_codebooks)
    has_text = any(field.kind == "text" for field in layout.fields)
    return layout, Vocabulary(
        tokenizer_fingerprint="tokenizer-01",
        stream_sizes=layout.stream_sizes((NUM_UNITS,) * num_codebooks),
        text_size=NUM_TOKENS if has_text else 0,
        text_fingerprint="text-01" if has_text else None,
    )


def random_content(
    layout: Layout, *, frames: int, asked: int | None, tokens: int, seed: int
) -> dict[str, Tensor]:
    """Content for a layout: ``asked`` frames of question where it takes questions, else alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    names = {field.name for field in layout.fields}
    if asked is None and "speech" in names and layout.name != "chain":
        names -= {"question", "answer"}
    elif "question" in names:
        names -= {"speech"}
    content: dict[str, Tensor] = {}
    for field in layout.fields:
        if field.name not in names:
            continue
        if field.kind == "units":
            length = (asked or 0) if field.name == "question" else frames
            content[field.name] = draw(NUM_UNITS, field.num_streams, length)
        elif field.kind == "text":
            content[field.name] = draw(NUM_TOKENS, tokens)
    if "words" in names:
        words, free = [], 0
        while free < frames:
            start = free + int(draw(3, 1)) + (free > 0)
            length = 1 + int(draw(3, 1))
            if start + length > frames:
                break
            words.append((start, length))
            free = start + length
        content["words"] = fit_words(words, frames)
        content["text"] = draw(NUM_TOKENS, sum(length for _, length in words))
    if "spans" in names:
        content["spans"] = random_spans(tokens, frames, generator)
    return content


def random_spans(tokens: int, frames: int, generator: torch.Generator) -> Tensor:
    """Alternate spans that use up so many tokens and frames."""
    left = [tokens, frames]
    if 0 in left:
        kind = int(frames > 0)
        return torch.tensor([[kind, left[kind]]])
    kind, spans = int(torch.randint(2, (), generator=generator)), []
    while any(left):
        length = left[kind]
        if left[1 - kind]:  # keep enough to separate what is left of the other
            length = 1 + int(torch.randint(left[kind], (), generator=generator))
            if length == left[kind] and left[1 - kind] > 1 and len(spans) % 3:
                length = max(1, length - 1)
        spans.append([kind, length])
        left[kind] -= length
        if not left[1 - kind] and left[kind]:
            spans[-1][1] += left[kind]
            left[kind] = 0
        elif not left[kind] and left[1 - kind]:
            spans.append([1 - kind, left[1 - kind]])
            left[1 - kind] = 0
        kind = 1 - kind
    return torch.tensor(spans)


def known_part(layout: Layout, content: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """What of ``content`` a prompt may hold: the question, or the first ``frames`` of it."""
    if "question" in content:
        return {"question": content["question"]}
    for start, length in reversed(content.get("words", torch.zeros(0, 2)).tolist()):
        if 0 < start <= frames < start + length:  # in a word, or where "word" stands before it
            frames = int(start) - 1
        elif start < frames < start + length:
            frames = 0
    known: dict[str, Tensor] = {}
    for name in ("speech", "self", "other"):
        if name in content:
            known[name] = content[name][:, :frames]
    if "spans" in content:
        return span_prefix(content, frames)
    if "words" in content:
        words = content["words"]
        known["words"] = words[words.sum(dim=1) <= frames]
        known["text"] = content["text"][: int(known["words"][:, 1].sum())]
    elif "text" in content:
        known = {"text": content["text"]}
        if layout.name == "interleave-chunks":
            known = chunk_prefix(layout, content, frames)
    if layout.name == "coarse-first":
        done = sum(len(stage) for stage in layout.to_dict()["options"]["stages"][:-1])
        known["speech"] = content["speech"][:done]
    return known


def chunk_prefix(layout: Layout, content: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """As many units, and the text before them: whole chunks, which can be gone on from."""
    options = layout.to_dict()["options"]
    text_chunk, speech_chunk = options["text_chunk"], options["speech_chunk"]
    text, speech = content["text"], content["speech"]
    chunks = min(frames // speech_chunk, speech.shape[1] // speech_chunk, len(text) // text_chunk)
    return {
        "text": text[: chunks * text_chunk],
        "speech": speech[:, : chunks * speech_chunk],
    }


def span_prefix(content: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first ``count`` spans, one at least."""
    spans = content["spans"][: max(count, 1)]
    lengths = [int(spans[spans[:, 0] == kind, 1].sum()) for kind in (0, 1)]
    return {
        "text": content["text"][: lengths[0]],
        "speech": content["speech"][:, : lengths[1]],
        "spans": spans,
    }


def columns_after(prompt: Prompt, ids: Tensor) -> Tensor:
    """What follows a prompt in a whole sequence that begins with it."""
    assert torch.equal(ids[:, : len(prompt)], prompt.ids)
    return ids[:, len(prompt) :]


def allowed(grammar: Grammar, state: Hashable, num_rows: int) -> Tensor:
    """What may come next in each row, bool [R, V]."""
    way = grammar.mask_of(state)
    return torch.stack([grammar.masks_of(row)[way] for row in range(num_rows)])
