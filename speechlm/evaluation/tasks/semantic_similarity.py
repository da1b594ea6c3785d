"""sSIMI of ZeroSpeech 2021: pairs of words that people judged, and recordings of the words.

What stands for a recording is pooled over its frames: what its units stand for
(``unit_features``), what layers of the language model make of them, or plain features. A layer
that suits is chosen on the development set, as in the challenge, so several are told.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.bundle import SpeechLM
from speechlm.errors import CorpusError, InputError, SpeechLMError
from speechlm.evaluation.features import SAMPLE_RATE, plain_features
from speechlm.evaluation.semantic import POOLINGS, Floats, spearman, token_distance
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.phone_abx import frames_of_units
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of
from speechlm.model.unit_lm import UnitLM
from speechlm.units import Units

GOLD_NAME, PAIRS_NAME = "gold.csv", "pairs.csv"
TYPES = ("synthetic", "librispeech")
NUM_DRAWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class WordPair:
    """Two words, how alike people find them, and their recordings."""

    type: str
    dataset: str
    words: tuple[str, str]
    human: float
    """More is more alike."""
    compared: tuple[tuple[tuple[Path, ...], tuple[Path, ...]], ...]
    """Recordings of the one and of the other that are compared, all with all; the mean over
    these is the distance: a voice each where they are synthetic, else one that holds them all."""


def run_ssimi(job: Job) -> Iterator[Result]:
    """Correlations by type and dataset, and their means over datasets."""
    pairs = read_semantic(job.given)
    sha256 = data_sha256(job.given, pairs)

    def score(left: Sequence[WordPair]) -> Iterator[Item]:
        vectors = cache(partial(pooled, job.system))  # a word comes in many pairs
        for pair in left:
            yield score_pair(pair, vectors)

    items = job.run_items(pairs, score, sha256, "pairs of words")
    blank = job.row(data_sha256=sha256)
    yield from correlations([item for item in items if not item.error], blank)
    yield from job.rows([replace(item, figures={}) for item in items], sha256)


def read_semantic(folder: Path) -> list[WordPair]:
    """The semantic task: ``gold.csv``, ``pairs.csv``, and recordings in a folder a type.

    Raises:
        CorpusError: A file, a column, a judgement, a word's recordings, or one of them is missing.
    """
    gold = _rows(folder / GOLD_NAME, ("type", "filename", "word"))
    spoken: dict[tuple[str, str], list[tuple[str, Path]]] = defaultdict(list)
    for row in gold:
        path = folder / row["type"] / row["filename"]
        path = path if path.suffix else path.with_suffix(".wav")
        if not path.is_file():
            raise CorpusError(f"{folder / GOLD_NAME}: {path} is missing; download the data again")
        spoken[row["type"], row["word"]].append((row.get("voice") or "", path))
    columns = ("type", "dataset", "word_1", "word_2", "similarity", "relatedness")
    rows = _rows(folder / PAIRS_NAME, columns)
    judged: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        judged[row["type"], row["dataset"]].append(row)
    pairs = []
    for (kind, dataset), some in judged.items():
        # A data set tells one of the two of all of its pairs.
        whole = [c for c in ("relatedness", "similarity") if all(_number(row[c]) for row in some)]
        if kind not in TYPES or not whole:
            raise CorpusError(
                f"{folder / PAIRS_NAME}: expected pairs of type {' or '.join(TYPES)} with a "
                f"similarity or a relatedness each, got {kind}/{dataset} without"
            )
        for row in some:
            words = row["word_1"], row["word_2"]
            pairs.append(
                WordPair(
                    type=kind,
                    dataset=dataset,
                    words=words,
                    human=float(row[whole[0]]),
                    compared=_compared(kind, [spoken[kind, word] for word in words], words),
                )
            )
    return pairs


def _compared(
    kind: str, spoken: Sequence[Sequence[tuple[str, Path]]], words: tuple[str, str]
) -> tuple[tuple[tuple[Path, ...], tuple[Path, ...]], ...]:
    first, second = spoken
    if kind == "librispeech" and first and second:
        return ((tuple(path for _, path in first), tuple(path for _, path in second)),)
    same = [((a,), (b,)) for voice, a in first for other, b in second if voice == other]
    if not same:
        raise CorpusError(
            f"expected recordings of {words[0]!r} and {words[1]!r} ({kind}), in a voice that both "
            f"share, got {len(first)} and {len(second)}"
        )
    return tuple(same)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise CorpusError(f"{path} is missing: expected the semantic task as it is published")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or (lacking := set(columns) - set(rows[0])):
        got = f"none of {sorted(lacking)}" if rows else "no rows"
        raise CorpusError(f"{path}: expected columns {list(columns)}, got {got}")
    return rows


def _number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


def data_sha256(folder: Path, pairs: Sequence[WordPair]) -> str:
    """Of both tables and of every byte of the recordings."""
    digest = hashlib.sha256()
    sound = {path for pair in pairs for both in pair.compared for side in both for path in side}
    for path in (folder / GOLD_NAME, folder / PAIRS_NAME, *sorted(sound)):
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def pooled(system: System, path: Path) -> dict[str, Tensor]:
    """What stands for a recording, float32 [D] by ``FEATURES/POOLING``.

    Raises:
        AudioError: It cannot be read.
        InputError: The system has nothing that could.
    """
    if system.is_features:
        frames = {system.source: plain_features(load_audio(path, SAMPLE_RATE), system.source)}
    else:
        tokenizer = system.tokenizer
        units = tokenizer.encode(load_audio(path, tokenizer.sample_rate)[None])[0]
        meanings = getattr(tokenizer, "unit_features", None)
        frames = {}
        if meanings is not None:
            frames["unit-features"] = meanings[frames_of_units(units)[0]].float()
        if system.is_bundle:
            frames |= hidden_states(system.bundle, units)
        if not frames:
            raise InputError("expected a bundle, or a tokenizer whose units have features")
    return {
        f"{name}/{pooling}": pool(part)
        for name, part in frames.items()
        for pooling, pool in POOLINGS.items()
    }


def hidden_states(model: SpeechLM, units: Units) -> dict[str, Tensor]:
    """What layers of the LM make of units: at a quarter, half, three quarters, and the last.

    Returns:
        float32 [F', D] by ``layer-N``, a row for each column that holds a unit.
    """
    lm: UnitLM = model.lm
    layers = lm.decoder.model.layers
    chosen = sorted({max(1, round(part * len(layers) / 4)) for part in (1, 2, 3, 4)})
    lm.vocabulary.check(units)
    ids = lm.layout.encode(lm.vocabulary, {"speech": units.codes}).ids
    spoken = (ids >= lm.vocabulary.first_unit).any(dim=0)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        number = int(name.rpartition("-")[2])
        return layers[number - 1].register_forward_hook(
            lambda _module, _given, made: found.__setitem__(name, made[0].float().cpu())
        )

    handles = [keep(f"layer-{number}") for number in chosen]
    try:
        with torch.inference_mode():
            lm.decoder.hidden(ids[None].to(lm.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: states[spoken] for name, states in found.items()}


def score_pair(pair: WordPair, vectors: Callable[[Path], dict[str, Tensor]]) -> Item:
    """How far apart two words lie, by variant, in the item's note."""
    name = f"{pair.type}/{pair.dataset}/{'/'.join(pair.words)}"
    apart: dict[str, list[float]] = defaultdict(list)
    try:
        for both in pair.compared:
            first, second = ([vectors(path) for path in side] for side in both)
            for variant in first[0]:
                distance = token_distance(
                    [vector[variant] for vector in first], [vector[variant] for vector in second]
                )
                apart[variant].append(distance)
    except (SpeechLMError, OSError) as error:
        return Item(id=name, error=str(error))
    note = {
        "type": pair.type,
        "dataset": pair.dataset,
        "human": pair.human,
        "distances": {variant: sum(each) / len(each) for variant, each in apart.items()},
    }
    return Item(id=name, note=note)


def correlations(items: Sequence[Item], blank: Result) -> Iterator[Result]:
    """A row for each data set and variant; then, of each type, the means over its data sets.

    ``mean`` counts each data set once, ``weighted`` by its pairs; both are ZeroSpeech's.
    """
    types: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        types[item.note["type"]][item.note["dataset"]].append(item)
    for kind, datasets in types.items():
        sizes = [len(some) for some in datasets.values()]
        for variant in next(iter(datasets.values()))[0].note["distances"]:
            draws = []
            for dataset, some in datasets.items():
                value, drawn = _correlation(some, variant, blank.seed)
                draws.append(np.concatenate([[value], drawn]))
                subset = f"type={kind},dataset={dataset}"
                yield _row(blank, variant, subset, draws[-1], len(some))
            for name, weights in (("mean", [1] * len(sizes)), ("weighted", sizes)):
                average = np.average(np.stack(draws), axis=0, weights=weights)
                yield _row(blank, f"{variant}/{name}", f"type={kind}", average, sum(sizes))


def _correlation(items: Sequence[Item], variant: str, seed: int) -> tuple[float, Floats]:
    """Of people's judgement turned round with distances; and that of draws of pairs [R]."""
    human = np.array([-item.note["human"] for item in items])
    apart = np.array([item.note["distances"][variant] for item in items])
    draw = np.random.default_rng(seed)
    drawn = draw.integers(len(items), size=(NUM_DRAWS, len(items)))
    return spearman(human, apart), np.array([spearman(human[row], apart[row]) for row in drawn])


def _row(blank: Result, variant: str, subset: str, found: Floats, n: int) -> Result:
    """A figure and its interval, of the figure itself and those of draws [1 + R]."""
    if not np.isfinite(found[0]):
        error = "no correlation: all judgements or all distances are equal"
        return replace(blank, variant=variant, subset=subset, n=n, error=error)
    low, high = np.nanquantile(found[1:], [0.025, 0.975])
    return replace(
        blank,
        variant=variant,
        subset=subset,
        value=float(found[0]),
        ci95=(float(low), float(high)),
        n=n,
    )
