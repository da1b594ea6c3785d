"""Fitting a tokenizer on the recordings that a run will train on."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from speechlm.config import RunConfig
from speechlm.data.corpus import Corpus, Recording, open_corpus
from speechlm.errors import AudioError, CorpusError, PluginError
from speechlm.files import read_json, write_json
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import AUTO, TOKENIZERS, VOCODERS, load_tokenizer, load_vocoder, plugin
from speechlm.progress import progress, say

MAX_RECORDINGS = 3000
"""Recordings read for a fit: a drawn sample of a larger corpus represents it as well."""
FRAME_S = 0.02
SILENCE_DB = -35.0
"""Frames of :data:`FRAME_S` this far below the loudest one are silent."""
SILENCE_S = 0.2
UNREADABLE_NAME = "unreadable.json"


def fit_tokenizer(config: RunConfig) -> None:
    """Fit ``config.tokenizer.name`` on the corpus and save it to ``config.tokenizer_path``.

    A question is followed by the recording that answers it, as in training, so that the
    answering voice has its share of the units however few recordings it has. A tokenizer that
    is there already is kept; a fit that was killed goes on where the tokenizer can.

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
    waves: Iterable[Tensor] = ()
    if getattr(kind, "needs_corpus", lambda options: True)(options):
        chosen = _choose(open_corpus(config.corpus_path), config.seed)
        job = [config.tokenizer.name, options, config.seed]
        work = _work_folder(folder, job, chosen)
        # A tokenizer that goes on top of another takes that one's rate.
        rate = kind.fit_sample_rate(options) if hasattr(kind, "fit_sample_rate") else None
        waves = CorpusWaves(chosen, rate or kind.sample_rate, config.corpus_path, work)
    tokenizer = kind.fit(waves, options, config.seed)
    tokenizer.save(folder)
    if isinstance(waves, CorpusWaves):
        shutil.rmtree(waves.work, ignore_errors=True)
    say(f"{folder}: {tokenizer.fingerprint}, {tokenizer.vocab_size} units")


def take_vocoder(config: RunConfig) -> bool:
    """Read the published vocoder that ``vocoder.options`` name into ``config.vocoder_path``.

    Returns:
        Whether one was named.

    Raises:
        PluginError: The vocoder is not known.
        ConfigError: An option is not known.
        CheckpointError: The checkpoint cannot be read, or is for other units.
    """
    name, options = config.vocoder.name, config.vocoder.options
    if name == AUTO or not hasattr(kind := plugin(VOCODERS, name), "from_options"):
        return False
    folder = config.vocoder_path
    if (folder / CONFIG_NAME).is_file():
        say(f"{folder}: there already ({load_vocoder(folder).fingerprint})")
        return True
    vocoder = kind.from_options(load_tokenizer(config.tokenizer_path), options)
    if vocoder is None:
        return False
    vocoder.save(folder)
    say(f"{folder}: {vocoder.fingerprint}")
    return True


class CorpusWaves:
    """Recordings of a corpus to fit on; see :class:`speechlm.protocols.ResumableWaves`.

    Those that cannot be read are named and left out. Which they are is kept in ``work``, so that
    a fit that goes on need not try them again to know how many it has heard.
    """

    def __init__(
        self, recordings: Sequence[Recording], sample_rate: int, path: Path, work: Path
    ) -> None:
        """Begin, or go on.

        Args:
            recordings: What to read, in order.
            sample_rate: The rate to give them at, Hz.
            path: The corpus, for errors.
            work: Folder for what shall survive a kill; made when something is kept in it.
        """
        self.work = work
        self._recordings, self._sample_rate, self._path = recordings, sample_rate, path

    def __iter__(self) -> Iterator[Tensor]:
        return self.after(0)

    def after(self, count: int) -> Iterator[Tensor]:
        """All but the first ``count`` that can be read, float32 [T]; these are not read."""
        unreadable = self._unreadable()
        start, heard = 0, 0
        while heard < count and start < len(self._recordings):
            heard += start not in unreadable
            start += 1
        if start:
            say(f"going on after {start} of {len(self._recordings)} recordings")
        with progress("fitting", len(self._recordings), "recordings") as advance:
            advance(start)
            for place, recording in enumerate(self._recordings[start:], start):
                try:
                    wave = recording.load(self._sample_rate)
                    # Whoever has a channel of their own is silent for most of it.
                    alone = recording.channel is None
                    yield wave if alone else shorten_silence(wave, self._sample_rate)
                except AudioError as error:
                    say(f"left out of the fit: {error}")
                    if place not in unreadable:
                        unreadable.add(place)
                        write_json(self.work / UNREADABLE_NAME, sorted(unreadable))
                advance()
        if len(unreadable) == len(self._recordings):
            raise CorpusError(
                f"{self._path}: none of its {len(unreadable)} recordings can be read, so nothing "
                "to fit on"
            )

    def _unreadable(self) -> set[int]:
        path = self.work / UNREADABLE_NAME
        return set(read_json(path)) if path.is_file() else set()


def shorten_silence(wave: Tensor, sample_rate: int) -> Tensor:
    """Leave of every silence in a recording, float32 [T], no more than :data:`SILENCE_S`.

    Or it would take the units that speech needs.
    """
    size = round(FRAME_S * sample_rate)
    frames = F.pad(wave, (0, -len(wave) % size)).view(-1, size)
    level = frames.square().mean(dim=1).sqrt()
    loud = (level > level.max() * 10 ** (SILENCE_DB / 20)).float()
    reach = round(SILENCE_S / FRAME_S / 2)
    near = F.max_pool1d(loud[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0
    return frames[near].flatten()


def _work_folder(folder: Path, job: Any, recordings: Sequence[Recording]) -> Path:
    """Where a fit keeps what it has done: another job, or corpus, has another folder."""
    heard = [
        [each.id, str(each.source), each.start_s, each.duration_s, _size(each)]
        for each in recordings
    ]
    digest = hashlib.sha256(json.dumps([job, heard], default=str).encode()).hexdigest()[:16]
    work = folder.with_name(f".{folder.name}-fitting-{digest}")
    for other in folder.parent.glob(f".{folder.name}-fitting-*"):
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    return work


def _size(recording: Recording) -> int | None:
    try:
        return None if recording.audio is None else recording.audio.stat().st_size
    except OSError:
        return None  # loading it says what is wrong


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
