"""The sequences of a small unit store, under any layout."""

from __future__ import annotations

from pathlib import Path

import yaml

from speechlm.config import SpansConfig
from speechlm.data.store import UnitStore
from speechlm.layouts.registry import build_layout
from speechlm.layouts.text import TextTokenizer
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.training.content import ContentPlan
from speechlm.training.sequences import SequenceSet


def sequences_of(
    path: Path,
    split: str = "train",
    *,
    layout: str = "flat",
    max_length: int = 64,
    text_tokenizer: TextTokenizer | None = None,
) -> SequenceSet:
    """Those of a split; ``layout`` is a name and, after a space, options in YAML."""
    store = UnitStore.open(path)
    name, _, options = layout.partition(" ")
    built = build_layout(name, yaml.safe_load(options or "{}"), store.num_codebooks)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=store.fingerprint,
        stream_sizes=built.stream_sizes((store.vocab_size,) * store.num_codebooks),
        text_size=0 if text_tokenizer is None else text_tokenizer.size,
        text_fingerprint=None if text_tokenizer is None else text_tokenizer.fingerprint,
    )
    plan = ContentPlan(
        built,
        num_codebooks=store.num_codebooks,
        text_tokenizer=text_tokenizer,
        spans=SpansConfig(),
    )
    return SequenceSet.of_split(store, built, vocabulary, plan, split, max_length=max_length)
