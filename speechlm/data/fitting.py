"""Fitting a tokenizer on the recordings that a run will train on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from speechlm.config import RunConfig
from speechlm.data.corpus import Corpus, Recording, open_corpus
from speechlm.errors import AudioError, CorpusError, PluginError
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import TOKENIZERS, load_tokenizer, plugin
from speechlm.progress import progress, say

MAX_RECORDINGS = 3000
"""Recordings read for a fit: a drawn sample of a larger corpus represents it as well."""


def fit_tokenizer(config: RunConfig) -> None:
    """Fit ``config.tokenizer.name`` on the corpus and save it to ``config.tokenizer_path``.

    A question is followed by the recording that answers it, as in training, so that the
    answering voice has its share of the units however few recordings it has. A tokenizer that
    is there already is kept.

    Raises:
        PluginError: The tokenizer is not known, or has nothing to fit.
        CorpusError: No recording can be read, or they are too little to fit on.
    """
    folder = config.tokenizer_path
    if (folder / CONFIG_NAME).is_file():
        fitted = load_tokenizer(folder).fingerprint
        say(f"{folder}: fitted already ({fitted}); delete it to fit anew")
        return
    kind = plugin(TOKENIZERS, config.tokenizer.name)
    if not hasattr(kind, "fit"):
        raise PluginError(
            f"tokenizer {config.tokenizer.name!r} is not fitted but trained: run "
            f"'speechlm train train.part=tokenizer tokenizer.name={config.tokenizer.name}'"
        )
    options = config.tokenizer.options
    waves: Iterator[Tensor] = iter(())
    if getattr(kind, "needs_corpus", lambda options: True)(options):
        chosen = _choose(open_corpus(config.corpus_path), config.seed)
        waves = _waves(chosen, kind.sample_rate, config.corpus_path)
    tokenizer = kind.fit(waves, options, config.seed)
    tokenizer.save(folder)
    say(f"{folder}: {tokenizer.fingerprint}, {tokenizer.vocab_size} units")


def _choose(corpus: Corpus, seed: int) -> list[Recording]:
    """What training will see, in training's proportions: a seeded sample of it."""
    asked = [item for item in corpus if item.split in (None, "train")]
    random.Random(seed).shuffle(asked)
    chosen: list[Recording] = []
    for item in asked:
        chosen.append(item)
        if item.reply is not None:
            chosen.append(corpus[item.reply])
        if len(chosen) >= MAX_RECORDINGS:
            break
    return chosen


def _waves(recordings: list[Recording], sample_rate: int, path: Path) -> Iterator[Tensor]:
    failed = 0
    with progress("fitting", len(recordings), "recordings") as advance:
        for recording in recordings:
            try:
                yield recording.load(sample_rate)
            except AudioError as error:
                failed += 1
                say(f"left out of the fit: {error}")
            advance()
    if failed == len(recordings):
        raise CorpusError(
            f"{path}: none of its {failed} recordings can be read, so nothing to fit on"
        )
