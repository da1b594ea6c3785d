"""Two-channel dialogues that a model made, by dGSLM's turn statistics, beside real ones.

Both sides are folders of dialogues: recordings of two channels, or pairs ``NAME_a``, ``NAME_b``
of one. Who speaks when is found by voice activity; a line of ``turns.jsonl``, ``{"id", "a":
[[from, to], ...], "b": [...], "duration"}``, tells it exactly and needs no recording.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from speechlm.audio import EXTENSIONS
from speechlm.errors import AudioError, CorpusError, SpeechLMError
from speechlm.evaluation.interaction.distributions import quantile_interval, wasserstein_interval
from speechlm.evaluation.interaction.turns import KINDS, Span, Turns, find_turns, wasserstein
from speechlm.evaluation.interaction.voice_activity import SAMPLE_RATE, load_channels, speech_spans
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of

TURNS_NAME = "turns.jsonl"
TRUTH = "ground-truth/"
"""Before the variants of real dialogues."""
NEAR_S = 0.25
"""A turn that begins so near to the end of the last one comes without a gap or an overlap."""
TRANSFER = "transfer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """Where one dialogue lies, or when each speaks in it."""

    id: str
    side: str
    """``""`` for the system's, :data:`TRUTH` for a real one."""
    paths: tuple[Path, ...] = ()
    """One recording of two channels, or two of one."""
    spans: tuple[tuple[Span, ...], tuple[Span, ...]] | None = None
    duration_s: float = 0.0


def run_dialogues(job: Job) -> Iterator[Result]:
    """Turn statistics of a folder of dialogues, and how far they are from real ones."""
    truth = read_dialogues(job.given, TRUTH)
    made = read_dialogues(job.system.recordings, "")
    items = job.run_items(
        [*made, *truth],
        lambda left: (score_dialogue(one) for one in left),
        dialogues_sha256(truth),
        "dialogues",
        recordings_sha256=dialogues_sha256(made),
    )
    sha256 = dialogues_sha256(truth)
    yield from job.rows(items, sha256)
    blank = job.row(data_sha256=sha256)
    events = {side: _events(items, side) for side in ("", TRUTH)}
    mine, real = events[""], events[TRUTH]
    for side, of_side in events.items():
        offsets = [dialogue[TRANSFER] for dialogue in of_side.values()]
        every = [offset for some in offsets for offset in some]
        yield replace(
            blank,
            subset=TRANSFER,
            variant=f"{side}median_s",
            value=float(np.median(every)) if every else None,
            ci95=quantile_interval(offsets, 0.5, seed=job.seed),
            n=len(offsets),
            error="" if every else "nobody takes the other's turn",
        )
    paired = list(mine) == list(real)
    for kind in (*KINDS, TRANSFER):
        first, second = ([one[kind] for one in side.values()] for side in (mine, real))
        apart = wasserstein(*([v for some in side for v in some] for side in (first, second)))
        nothing = math.isnan(apart)
        yield replace(
            blank,
            subset=kind,
            variant="wasserstein_s",
            value=None if nothing else apart,
            ci95=None
            if nothing
            else wasserstein_interval(first, second, paired=paired, seed=job.seed),
            n=len(first),
            error=f"there is no {kind} on one side" if nothing else "",
        )


def read_dialogues(folder: Path, side: str) -> list[Dialogue]:
    """Every dialogue of a folder, by id: a recording's path within it, without its ending.

    Raises:
        CorpusError: There is none, or a line of ``turns.jsonl`` is none.
    """
    found = {one.id: one for one in _read_recordings(folder, side)}
    if (folder / TURNS_NAME).is_file():
        found.update((one.id, one) for one in _read_turns(folder / TURNS_NAME, side))
    if not found:
        raise CorpusError(
            f"{folder}: expected dialogues: recordings of two channels, NAME_a beside NAME_b, "
            f"or a {TURNS_NAME}"
        )
    return [found[name] for name in sorted(found)]


def _read_recordings(folder: Path, side: str) -> Iterator[Dialogue]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    stems = {path.with_suffix("").relative_to(folder).as_posix(): path for path in paths}
    for stem, path in stems.items():
        name, end = stem[:-2], stem[-2:]
        both = f"{name}_a", f"{name}_b"
        if end in ("_a", "_b") and all(half in stems for half in both):
            if end == "_a":
                yield Dialogue(id=name, side=side, paths=tuple(stems[half] for half in both))
        else:
            yield Dialogue(id=stem, side=side, paths=(path,))


def _read_turns(path: Path, side: str) -> Iterator[Dialogue]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            spans = tuple(
                tuple((float(start), float(end)) for start, end in row[speaker])
                for speaker in ("a", "b")
            )
            one = Dialogue(
                id=str(row["id"]),
                side=side,
                spans=(spans[0], spans[1]),
                duration_s=float(row["duration"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CorpusError(
                f'{path}:{number}: expected {{"id", "a": [[from, to], ...], "b", "duration"}}, '
                f"got {line[:60]!r}"
            ) from error
        if not all(0 <= start < end <= one.duration_s for part in spans for start, end in part):
            raise CorpusError(
                f"{path}:{number}: expected spans within 0 and its duration, {one.duration_s:g} s"
            )
        yield one


def dialogues_sha256(dialogues: Sequence[Dialogue]) -> str:
    """Of names and everything that is known of the dialogues, every byte of recordings."""
    digest = hashlib.sha256()
    for one in dialogues:
        of = [sha256_of(path) for path in one.paths] or [repr((one.spans, one.duration_s))]
        digest.update(repr((one.id, of)).encode())
    return digest.hexdigest()


def score_dialogue(dialogue: Dialogue) -> Item:
    """What happens in one dialogue; ``note`` holds how long every pause, gap and so on is."""
    try:
        turns = listen(dialogue)
    except (SpeechLMError, OSError) as error:
        return Item(id=dialogue.id, note={"side": dialogue.side}, error=str(error))
    seconds = turns.duration_s
    figures: dict[str, tuple[float, float]] = {}
    for kind in KINDS:
        lengths = turns.durations_s[kind]
        figures[f"{kind}_per_min"] = 60.0 * len(lengths), seconds
        figures[f"{kind}_seconds_per_min"] = 60 * sum(lengths), seconds
        if lengths:
            figures[f"{kind}_mean_s"] = sum(lengths), float(len(lengths))
    figures["backchannels_per_min"] = 60.0 * turns.backchannels, seconds
    if offsets := turns.transfers_s:
        near = sum(abs(offset) <= NEAR_S + 1e-9 for offset in offsets)
        figures["transfers_within_250ms"] = 100.0 * near, float(len(offsets))
    return Item(
        id=dialogue.id,
        figures={dialogue.side + name: both for name, both in figures.items()},
        note={
            "side": dialogue.side,
            "durations_s": {**turns.durations_s, TRANSFER: turns.transfers_s},
        },
    )


def listen(dialogue: Dialogue) -> Turns:
    """Who speaks when.

    Raises:
        AudioError: Not two channels, or a recording that cannot be read.
    """
    if dialogue.spans is not None:
        return find_turns(*dialogue.spans, dialogue.duration_s)
    waves = [wave for path in dialogue.paths for wave in load_channels(path)]
    if len(waves) != 2:
        names = ", ".join(map(str, dialogue.paths))
        raise AudioError(f"{names}: expected two channels, a speaker each, got {len(waves)}")
    first, second = (speech_spans(wave) for wave in waves)
    return find_turns(first, second, max(map(len, waves)) / SAMPLE_RATE)


def _events(items: Sequence[Item], side: str) -> dict[str, Mapping[str, Any]]:
    """The lengths of one side's pauses and so on, by dialogue."""
    return {
        item.id: item.note["durations_s"]
        for item in items
        if not item.error and item.note["side"] == side
    }
