"""ABX of a tokenizer's units, or of plain features, on recordings whose phones an item file tells.

Two views of the same units: ``identical`` asks whether two frames have the same unit, as a
language model sees it; ``angular`` compares what the units stand for (``unit_features``), which
forgives a unit that sounds much like another. Plain features have the second, and beside it what
units of k-means keep of them, fitted on the same recordings: what a tokenizer has to beat.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from speechlm.audio import load_audio
from speechlm.errors import CorpusError
from speechlm.evaluation import abx
from speechlm.evaluation.abx import Distance, Speakers, make_cells, measure_abx
from speechlm.evaluation.features import (
    FRAME_RATE,
    SAMPLE_RATE,
    kmeans_units,
    plain_features,
)
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of
from speechlm.progress import progress
from speechlm.units import Units

SUFFIXES = (".wav", ".flac")
KMEANS_UNITS = (50, 100)
SPEAKERS: tuple[Speakers, ...] = ("within", "across")

Phones = tuple[str, tuple[str, str]]
"""Name of an item file, and the phone of A and X and that of B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What stands for recordings, and how frames of it are compared."""

    name: str
    distance: Distance
    frame_rate: float
    features: Mapping[str, Tensor]
    """Of each file, [F, D]."""


def run_abx(job: Job) -> Iterator[Result]:
    """Whether units or features tell phones apart; no language model is asked."""
    yield from measure_folder(job, job.given)


def measure_folder(job: Job, folder: Path) -> Iterator[Result]:
    """The figures of all item files of a folder: an item of the benchmark is a pair of phones.

    Raises:
        AudioError: A recording cannot be read.
        CorpusError: See :func:`read_abx`; or there is nothing to compare.
    """
    found = read_abx(folder)
    sha256 = data_sha256(folder, found)
    todo: list[Phones] = []
    for name, phones in found.items():
        cells = [cell for speakers in SPEAKERS for cell in make_cells(phones, speakers)]
        if not cells:
            raise CorpusError(
                f"{folder / name}.item: expected phones of a voice between the same neighbours, "
                f"got none among {len(phones)}"
            )
        todo += [(name, pair) for pair in sorted({cell.phones for cell in cells})]

    def score(left: Sequence[Phones]) -> Iterator[Item]:
        for name in dict.fromkeys(name for name, _ in left):
            pairs = [pair for file, pair in left if file == name]
            files = sorted({phone.file for phone in found[name]})
            views = views_of(job.system, folder, files, job.seed)
            yield from score_pairs(views, name, found[name], pairs, job.seed)

    items = job.run_items(todo, score, sha256, "pairs of phones")
    yield from job.rows(items, sha256)


def read_abx(folder: Path) -> dict[str, list[abx.Item]]:
    """The phones of every ``*.item`` file in a folder, by its name.

    Raises:
        CorpusError: There is none, one is not an item file, or a recording is missing.
    """
    paths = sorted(folder.glob("*.item"))
    if not paths:
        raise CorpusError(f"{folder}: expected item files, NAME.item, and their recordings")
    found = {path.stem: abx.read_items(path) for path in paths}
    for name, phones in found.items():
        for file in sorted({phone.file for phone in phones}):
            if recording(folder, file) is None:
                raise CorpusError(
                    f"{folder / name}.item: {file}.wav or {file}.flac is missing in {folder}"
                )
    return found


def data_sha256(folder: Path, found: Mapping[str, Sequence[abx.Item]]) -> str:
    """Of every item file and of every byte of its recordings."""
    digest = hashlib.sha256()
    for name, phones in found.items():
        digest.update(sha256_of(folder / f"{name}.item").encode())
        for file in sorted({phone.file for phone in phones}):
            digest.update(sha256_of(_recording(folder, file)).encode())
    return digest.hexdigest()


def recording(folder: Path, file: str) -> Path | None:
    """Where a recording lies that items name."""
    paths = (folder / f"{file}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _recording(folder: Path, file: str) -> Path:
    path = recording(folder, file)
    assert path is not None  # read_abx has looked
    return path


def views_of(system: System, folder: Path, files: Sequence[str], seed: int) -> list[View]:
    """The system's views of recordings; of units the first codebook, whatever their rate.

    Raises:
        AudioError: A recording cannot be read.
        InputError: The system has neither units nor features.
    """
    if system.is_features:
        plain = {}
        with progress(system.source, len(files), "recordings") as advance:
            for file in files:
                wave = load_audio(_recording(folder, file), SAMPLE_RATE)
                plain[file] = plain_features(wave, system.source)
                advance()
        views = [View(name="angular", distance="angular", frame_rate=FRAME_RATE, features=plain)]
        for number in KMEANS_UNITS:
            units = kmeans_units(plain, number, seed)
            views.append(_same_units(f"identical-k{number}", FRAME_RATE, units))
        return views
    tokenizer = system.tokenizer
    codes = {}
    with progress("tokenizing", len(files), "recordings") as advance:
        for file in files:
            wave = load_audio(_recording(folder, file), tokenizer.sample_rate)
            codes[file] = frames_of_units(tokenizer.encode(wave[None])[0])[0]
            advance()
    rate = tokenizer.frame_rate
    views = [_same_units("identical", rate, codes)]
    meanings = getattr(tokenizer, "unit_features", None)
    if meanings is not None:
        stood_for = {file: meanings[units] for file, units in codes.items()}
        views.append(View(name="angular", distance="angular", frame_rate=rate, features=stood_for))
    return views


def _same_units(name: str, frame_rate: float, codes: Mapping[str, Tensor]) -> View:
    features = {file: units[:, None] for file, units in codes.items()}
    return View(name=name, distance="identical", frame_rate=frame_rate, features=features)


def frames_of_units(units: Units) -> Tensor:
    """A unit a frame, int64 [K, F], also of units that last unequally long."""
    if units.durations is None:
        return units.codes
    return units.codes.repeat_interleave(units.durations, dim=1)


def score_pairs(
    views: Sequence[View],
    name: str,
    phones: Sequence[abx.Item],
    pairs: Sequence[tuple[str, str]],
    seed: int,
) -> Iterator[Item]:
    """The errors of pairs of phones in each view, within and across voices."""
    figures: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    for speakers in SPEAKERS:
        if not make_cells(phones, speakers):  # such as one voice alone, across
            continue
        for view in views:
            error = measure_abx(
                view.features,
                phones,
                view.frame_rate,
                speakers=speakers,
                distance=view.distance,
                seed=seed,
            )
            for pair, percent in error.by_pair.items():
                figures[pair][f"{speakers}/{view.name}"] = (percent, 1.0)
                total, count = error.by_cell[pair]
                figures[pair][f"{speakers}/{view.name}/by-cell"] = (total, float(count))
    for pair in pairs:
        yield Item(
            id=f"{name}/{'/'.join(pair)}",
            figures=figures.get(pair, {}),
            subsets=(f"items={name}",),
            # So short are phones that no frame's middle lies in them.
            note={} if pair in figures else {"left_out": "no frame lies in enough of them"},
        )
