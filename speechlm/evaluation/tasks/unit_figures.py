"""What units are, on a corpus: their rate and bits, their use, phones, and what changes them.

Figures that are sums over recordings are items' own. Those that need counts of all recordings
(entropies, PNMI) are made at the end of the units that each item notes.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from speechlm.data.corpus import Corpus, Recording, open_corpus
from speechlm.data.shards import UnitFormat
from speechlm.errors import AudioError
from speechlm.evaluation.perturbations import PERTURBATIONS
from speechlm.evaluation.representation import PAUSE, phones_of_frames
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.phone_abx import frames_of_units
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.unit_statistics import (
    Counts,
    agreement_with_phones,
    count,
    edit_distance,
    entropy_bits,
    spread_interval,
    unit_perplexity,
)
from speechlm.files import sha256_of
from speechlm.protocols import AudioTokenizer
from speechlm.units import Units, collapse_repeats

MOST_RECORDINGS = 500
"""Of a larger corpus so many are drawn."""


def run_units(job: Job) -> Iterator[Result]:
    """All figures of a tokenizer's units on a corpus."""
    tokenizer = job.system.tokenizer
    corpus = open_corpus(job.given)
    chosen = choose(corpus, job.seed)
    partners = other_voices(chosen)
    sha256 = data_sha256(chosen)

    def score(left: Sequence[Recording]) -> Iterator[Item]:
        for recording in left:
            yield measure(tokenizer, recording, partners.get(recording.id), job.seed)

    items = job.run_items(chosen, score, sha256, "recordings")
    yield from job.rows(items, sha256)
    blank = job.row(data_sha256=sha256)
    sizes = UnitFormat.of(tokenizer).sizes
    yield from corpus_figures([item for item in items if not item.error], sizes, blank)


def choose(corpus: Corpus, seed: int) -> list[Recording]:
    """At most :data:`MOST_RECORDINGS`, drawn by the seed, in the corpus' order."""
    recordings = list(corpus)
    if len(recordings) <= MOST_RECORDINGS:
        return recordings
    places = random.Random(f"units {seed}").sample(range(len(recordings)), MOST_RECORDINGS)
    return [recordings[place] for place in sorted(places)]


def other_voices(recordings: Sequence[Recording]) -> dict[str, Recording]:
    """For each recording one of the same words in another voice, where there is one."""
    by_words: dict[tuple[str, ...], list[Recording]] = defaultdict(list)
    for recording in recordings:
        if recording.text and recording.speaker:
            by_words[tuple(recording.text.casefold().split())].append(recording)
    found = {}
    for same in by_words.values():
        for place, recording in enumerate(same):
            others = (*same[place + 1 :], *same[:place])
            partner = next((one for one in others if one.speaker != recording.speaker), None)
            if partner is not None:
                found[recording.id] = partner
    return found


def data_sha256(recordings: Sequence[Recording]) -> str:
    """Of what is said when in each recording, and of its sound."""
    digest = hashlib.sha256()
    for recording in recordings:
        about = (
            *(recording.id, recording.text, recording.speaker, recording.phones),
            *(recording.start_s, recording.duration_s, recording.source.rpartition("/")[2]),
        )
        digest.update(json.dumps(about).encode())
        if recording.audio is not None and recording.audio.is_file():
            digest.update(sha256_of(recording.audio).encode())
    return digest.hexdigest()


def measure(
    tokenizer: AudioTokenizer, recording: Recording, partner: Recording | None, seed: int
) -> Item:
    """The figures of one recording, and its units and phones as a note."""
    rate = tokenizer.sample_rate
    try:
        wave = recording.load(rate)
        other = None if partner is None else partner.load(rate)
    except AudioError as error:
        return Item(id=recording.id, error=str(error))
    units = tokenizer.encode(wave[None])[0]
    codes = frames_of_units(units)
    seconds = len(wave) / rate
    runs = units.collapse()
    num_units, num_runs = units.codes.numel(), runs.codes.numel()
    bits = sum(math.log2(size) for size in UnitFormat.of(tokenizer).sizes)
    figures = {
        "tokens-per-second": (float(num_units), seconds),
        "tokens-per-second/dedup": (float(num_runs), seconds),
        "mean-run": (float(codes.shape[1]), float(runs.codes.shape[1])),
        "bits-per-second/fixed": (units.codes.shape[1] * bits, seconds),
    }
    changed = {name: change(wave, rate, seed) for name, change in PERTURBATIONS.items()}
    if other is not None:
        changed["other-voice"] = other
    for name, heard in changed.items():
        again = tokenizer.encode(heard[None])[0]
        distance = edit_distance(first_runs(units), first_runs(again))
        for by, length in (("units", len(first_runs(units))), ("frames", codes.shape[1])):
            figures[f"unit-edit-distance/{name}/by-{by}"] = (100 * distance / length, 1.0)
    note: dict[str, object] = {"codes": units.codes.tolist(), "seconds": seconds}
    if units.durations is not None:
        note["durations"] = units.durations.tolist()
    if recording.phones:
        note["phones"] = phones_of_frames(recording.phones, codes.shape[1], tokenizer.frame_rate)
    return Item(id=recording.id, figures=figures, note=note)


def first_runs(units: Units) -> Tensor:
    """The first codebook without repeats, int64 [U]."""
    return collapse_repeats(units.codes[:1])[0][0]


def corpus_figures(items: Sequence[Item], sizes: Sequence[int], blank: Result) -> Iterator[Result]:
    """Figures of counts over all recordings, each with its interval.

    Args:
        items: Of :func:`measure`, without those that failed.
        sizes: Units of each codebook.
        blank: The row to fill in.
    """
    if not items:
        return
    seconds = torch.tensor([item.note["seconds"] for item in items], dtype=torch.float64)
    codes = [torch.tensor(item.note["codes"]) for item in items]

    def row(variant: str, figure: Callable[[Tensor], Tensor]) -> Result:
        value = float(figure(torch.ones(len(items), 1, dtype=torch.float64)))
        interval = spread_interval(value, figure, len(items), blank.seed)
        return replace(blank, variant=variant, value=value, ci95=interval, n=len(items))

    for index, size in enumerate(sizes):
        name = f"/codebook-{index + 1}" if len(sizes) > 1 else ""
        found = count([each[index][:, None] for each in codes])
        used = len(found.kinds)
        # Of a count of kinds no draw says how many there would be: draws only have fewer.
        for variant, value in (("used", 100 * used / size), ("dead", float(size - used))):
            yield replace(blank, variant=f"{variant}{name}", value=value, n=len(items))

        def perplexity(weights: Tensor, found: Counts = found) -> Tensor:
            return unit_perplexity(found.drawn(weights))

        yield row(f"perplexity{name}", perplexity)
    yield row("bits-per-second/entropy", _bits_per_second(codes, seconds))
    runs = [merged(item, each) for item, each in zip(items, codes, strict=True)]
    yield row("bits-per-second/entropy-dedup", _bits_per_second(runs, seconds))
    told = [item for item in items if any(item.note.get("phones", ()))]
    if told:
        yield from phone_figures(told, blank)


def merged(item: Item, codes: Tensor) -> Tensor:
    """Units without repeats and, as one more codebook, how many frames each lasts, [K + 1, U]."""
    if "durations" in item.note:
        return torch.cat([codes, torch.tensor(item.note["durations"])[None]])
    merged_codes, durations = collapse_repeats(codes)
    return torch.cat([merged_codes, durations[None]])


def _bits_per_second(codes: Sequence[Tensor], seconds: Tensor) -> Callable[[Tensor], Tensor]:
    """What a code would take that knows how often each unit comes, and nothing of its neighbours.

    Args:
        codes: Of each recording, int64 [K, F].
        seconds: float64 [N].
    """
    books = [count([each[index][:, None] for each in codes]) for index in range(len(codes[0]))]
    lengths = torch.tensor([each.shape[1] for each in codes], dtype=torch.float64)

    def figure(weights: Tensor) -> Tensor:
        bits = torch.stack([entropy_bits(book.drawn(weights)) for book in books]).sum(dim=0)
        return bits * (lengths @ weights) / (seconds @ weights)

    return figure


def phone_figures(items: Sequence[Item], blank: Result) -> Iterator[Result]:
    """PNMI and purities of the first codebook, over frames that have a phone."""
    numbers: Mapping[str, int] = {
        name: number
        for number, name in enumerate(sorted({p for item in items for p in item.note["phones"]}))
    }
    pairs = []
    for item in items:
        codes = torch.tensor(item.note["codes"])[0]
        if "durations" in item.note:
            codes = codes.repeat_interleave(torch.tensor(item.note["durations"]))
        phones = torch.tensor([numbers[phone] for phone in item.note["phones"]])
        spoken = torch.tensor([phone != PAUSE for phone in item.note["phones"]])
        pairs.append(torch.stack([phones, codes], dim=1)[spoken])
    found = count(pairs)
    for variant in ("pnmi", "phone-purity", "cluster-purity"):

        def figure(weights: Tensor, variant: str = variant) -> Tensor:
            return agreement_with_phones(found.drawn(weights), found.kinds)[variant]

        value = float(figure(torch.ones(len(items), 1, dtype=torch.float64)))
        interval = spread_interval(value, figure, len(items), blank.seed)
        yield replace(blank, variant=variant, value=value, ci95=interval, n=len(items))
