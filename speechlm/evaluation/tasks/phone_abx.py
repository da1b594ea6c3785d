"""ABX of a tokenizer's units, on recordings whose phones an item file tells.

Two views of the same units: ``identical`` asks whether two frames have the same unit, as a
language model sees it; ``angular`` compares what the units stand for (``unit_features``), which
forgives a unit that sounds much like another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from speechlm.audio import load_audio
from speechlm.errors import CorpusError
from speechlm.evaluation.abx import ABXError, Distance, Item, Speakers, measure_abx, read_items
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of
from speechlm.progress import progress
from speechlm.protocols import AudioTokenizer

SUFFIXES = (".wav", ".flac")
SPEAKERS: tuple[Speakers, ...] = ("within", "across")


def run_abx(job: Job) -> Iterator[Result]:
    """Whether units tell phones apart; no language model is asked."""
    tokenizer = job.system.tokenizer
    for name, items in read_abx(job.given).items():
        blank = job.row(data_sha256=items_sha256(job.given, name, items))
        for variant, error in measure_units(tokenizer, job.given, items, job.seed):
            yield replace(
                blank,
                variant=variant,
                subset=name,
                value=error.value,
                ci95=error.ci95,
                n=error.num_triples,
            )


def read_abx(folder: Path) -> dict[str, list[Item]]:
    """The items of every ``*.item`` file in a folder, by its name.

    Raises:
        CorpusError: There is none, one is not an item file, or a recording is missing.
    """
    paths = sorted(folder.glob("*.item"))
    if not paths:
        raise CorpusError(f"{folder}: expected item files, NAME.item, and their recordings")
    found = {path.stem: read_items(path) for path in paths}
    for name, items in found.items():
        for file in {item.file for item in items}:
            if recording(folder, file) is None:
                raise CorpusError(
                    f"{folder / name}.item: {file}.wav or {file}.flac is missing in {folder}"
                )
    return found


def items_sha256(folder: Path, name: str, items: list[Item]) -> str:
    """Of an item file and of every byte of its recordings."""
    paths = {recording(folder, item.file) for item in items}
    digest = hashlib.sha256(sha256_of(folder / f"{name}.item").encode())
    for path in sorted(path for path in paths if path is not None):
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def recording(folder: Path, file: str) -> Path | None:
    """Where a recording lies that items name."""
    paths = (folder / f"{file}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def measure_units(
    tokenizer: AudioTokenizer, folder: Path, items: list[Item], seed: int
) -> Iterator[tuple[str, ABXError]]:
    """The errors of a tokenizer's first codebook, by ``SPEAKERS/DISTANCE``.

    Raises:
        AudioError: A recording cannot be read.
        CorpusError: There is nothing to compare.
    """
    files = sorted({item.file for item in items})
    codes: dict[str, Tensor] = {}
    with progress("tokenizing", len(files), "recordings") as advance:
        for file in files:
            path = recording(folder, file)
            assert path is not None
            wave = load_audio(path, tokenizer.sample_rate)
            codes[file] = tokenizer.encode(wave[None])[0].expand().codes[0]
            advance()
    views: dict[Distance, dict[str, Tensor]] = {
        "identical": {file: units[:, None] for file, units in codes.items()}
    }
    features = getattr(tokenizer, "unit_features", None)
    if features is not None:
        views["angular"] = {file: features[units] for file, units in codes.items()}
    for speakers in SPEAKERS:
        if speakers == "across" and len({item.speaker for item in items}) < 2:
            continue
        for distance, view in views.items():
            found = measure_abx(
                view, items, tokenizer.frame_rate, speakers=speakers, distance=distance, seed=seed
            )
            yield f"{speakers}/{distance}", found
