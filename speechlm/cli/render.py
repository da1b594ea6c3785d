"""Recordings in, recordings out: what ``generate`` and ``resynthesize`` share."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechlm.errors import AudioError, InputError, PartialFailure, SpeechLMError

if TYPE_CHECKING:
    from torch import Tensor

    from speechlm.bundle import SpeechLM

Speak = Callable[["SpeechLM", "Tensor"], Iterator["Tensor"]]
"""What is made of one recording, float32 [T] at the bundle's rate, piece by piece."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One recording and the file that is made of it."""

    source: Path
    target: Path


def add_arguments(parser: ArgumentParser, *, output: str) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a folder that 'speechlm train' wrote, or a hub id"
    )
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="audio files, or folders of them"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(output),
        metavar="FOLDER",
        help="where the WAV files go, under the names of the inputs; for a single input also a "
        "name that ends in .wav (%(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    parser.add_argument(
        "--keep-going", action="store_true", help="exit 0 also when some recordings failed"
    )


def plan(inputs: Sequence[Path], output: Path) -> list[Job]:
    """Decide which file is made of which recording.

    Raises:
        InputError: An input is missing, a folder holds no audio, two recordings would be
            written to one file, or one .wav is wanted for several recordings.
    """
    found = [pair for given in inputs for pair in _recordings(given)]
    if output.suffix.lower() == ".wav":
        if len(found) > 1:
            raise InputError(
                f"expected a folder after -o for {len(found)} recordings, got {output}"
            )
        return [Job(source=found[0][0], target=output)]
    jobs: dict[Path, Job] = {}
    for source, name in found:
        job = Job(source=source, target=output / name.with_suffix(".wav"))
        if job.target in jobs:
            raise InputError(
                f"{jobs[job.target].source} and {source} would both become {job.target}; "
                "give them in two commands with their own -o"
            )
        jobs[job.target] = job
    return list(jobs.values())


def render(args: Namespace, speak: Speak) -> None:
    """Run ``speak`` over the inputs, a line on stdout for each.

    Raises:
        PartialFailure: Some recordings failed, and ``--keep-going`` was not given.
        InputError: All of them did.
    """
    jobs = plan(args.inputs, args.output)
    from speechlm.audio import load_audio
    from speechlm.bundle import SpeechLM
    from speechlm.progress import say

    model = SpeechLM.from_pretrained(args.bundle)
    failed = []
    for job in jobs:
        try:
            if job.target.exists() and not args.force:
                raise InputError(f"{job.target} exists already; --force overwrites it")
            if job.target.exists() and job.target.samefile(job.source):
                raise InputError(f"{job.target} would be overwritten by its own answer")
            wave = load_audio(job.source, model.sample_rate)
            print(_render_one(model, speak, wave, job), flush=True)
        except SpeechLMError as error:
            failed.append(job)
            reason = str(error)
            named = reason if str(job.source) in reason else f"{job.source}: {reason}"
            say(f"failed: {named}")
    if len(failed) == len(jobs):
        raise InputError(f"none of {len(jobs)} recordings could be used; the reasons are above")
    if failed and not args.keep_going:
        raise PartialFailure(
            f"{len(failed)} of {len(jobs)} recordings failed, for the reasons above; "
            "the others are done (--keep-going makes this exit 0)"
        )


def _render_one(model: SpeechLM, speak: Speak, wave: Tensor, job: Job) -> str:
    """Make and write one recording; say how long it is and how long that took."""
    import torch

    from speechlm.audio import save_audio

    start = time.perf_counter()
    first_s = None
    pieces = []
    for piece in speak(model, wave):
        if piece.numel() and first_s is None:
            first_s = time.perf_counter() - start
        pieces.append(piece)
    spent_s = time.perf_counter() - start
    made = torch.cat(pieces) if pieces else torch.zeros(0)
    if first_s is None:
        raise AudioError(f"{job.source}: the model ended at once, without a sound")
    save_audio(job.target, made, model.sample_rate)
    duration_s = made.numel() / model.sample_rate
    return (
        f"{job.source} -> {job.target}  {duration_s:.2f} s, first audio after "
        f"{1000 * first_s:.0f} ms, real-time factor {spent_s / duration_s:.3f}"
    )


def _recordings(given: Path) -> Iterator[tuple[Path, Path]]:
    """The recordings of one input, each with the name that its output keeps."""
    from speechlm.audio import EXTENSIONS

    if not given.is_dir():
        if not given.exists():
            raise InputError(f"{given}: no such file or folder")
        yield given, Path(given.name)
        return
    files = sorted(p for p in given.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not files:
        known = ", ".join(sorted(EXTENSIONS))
        raise InputError(f"{given}: holds no audio ({known})")
    for file in files:
        yield file, file.relative_to(given)
