"""Recordings in, recordings out: what ``generate`` and ``resynthesize`` share, and ``score``."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from speechlm.cli.main import is_disk_full
from speechlm.config import SamplingConfig
from speechlm.errors import AudioError, InputError, PartialFailure, SpeechLMError

if TYPE_CHECKING:
    from torch import Tensor

    from speechlm.data.corpus import Recording
    from speechlm.resynthesis import Resynthesizer

M = TypeVar("M", bound="Resynthesizer")
Speak = Callable[[M, "Tensor"], "Tensor"]
"""What is made of one recording, float32 [T] at the tokenizer's rate."""
FirstSound = Callable[[M, "Tensor"], "Tensor | None"]
"""The same, live, up to its first sound: what a listener waits for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One recording and the file that is made of it."""

    recording: Recording
    target: Path


BUNDLE_HELP = "a folder that 'speechlm train' wrote, or a hub id"


def add_arguments(parser: ArgumentParser, *, output: str, bundle: str = BUNDLE_HELP) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help=bundle)
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="audio files, or folders, JSON lines and lhotse CutSets of them",
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
    parser.add_argument(
        "--speaker",
        type=Path,
        metavar="REFERENCE",
        help="a recording of the voice to speak in, a few seconds, for vocoders that take a voice",
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    parser.add_argument(
        "--keep-going", action="store_true", help="exit 0 also when some recordings failed"
    )


def add_live_sampling(parser: ArgumentParser) -> None:
    """How a session draws units: :func:`live_sampling` reads it."""
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        help="0 takes the most probable unit, 1 draws as the model believes; if not given, 0 for "
        "models that answer whole turns, 0.8 among the 50 most probable for duplex ones",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        help="with --temperature: draw among the K most probable units, 0 for all (%(default)s)",
    )


def live_sampling(args: Namespace) -> SamplingConfig | None:
    """What was asked for; None: the session's own."""
    if args.temperature is None:
        return None
    return SamplingConfig(temperature=args.temperature, top_k=args.top_k)


def add_weights(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="what the language model computes with; int8 is the fastest on a CPU, and 'speechlm "
        "score --weights int8' says what it loses (%(default)s)",
    )


def plan(inputs: Sequence[Path], output: Path) -> list[Job]:
    """Decide which file is made of which recording.

    Raises:
        InputError: An input is missing, a folder holds no audio or cannot be read, two
            recordings would be written to one file, or one .wav is wanted for several.
    """
    recordings = [recording for given in inputs for recording in recordings_of(given)]
    if output.suffix.lower() == ".wav" and not output.is_dir():
        if len(recordings) > 1:
            raise InputError(
                f"expected a folder after -o for {len(recordings)} recordings, got {output}"
            )
        return [Job(recording=recordings[0], target=output)]
    jobs: dict[Path, Job] = {}
    for recording in recordings:
        target = output / _wav_name(recording.id)
        other = jobs.setdefault(target, Job(recording=recording, target=target)).recording
        if other is not recording:
            raise InputError(
                f"{other.source} and {recording.source} would both become {target}; "
                "give them in two commands, each with its own -o"
            )
    return list(jobs.values())


def render(
    args: Namespace,
    load: Callable[[], M],
    speak: Speak[M],
    first_sound: FirstSound[M] | None = None,
) -> None:
    """Run ``speak`` with what ``load`` gives over the inputs, a line on stdout for each.

    Raises:
        PartialFailure: Some recordings failed, and ``--keep-going`` was not given.
        InputError: All of them did.
    """
    jobs = plan(args.inputs, args.output)
    model = load()
    if args.speaker is not None:
        model.speaker = embed_reference(args.speaker)
    num_failed = 0
    for job in jobs:
        try:
            _check_target(job, force=args.force)
            print(_render_one(model, job, speak, first_sound), flush=True)
        except (SpeechLMError, OSError) as error:
            num_failed += 1
            list_failure(job.recording, error)
    finish(num_failed, len(jobs), keep_going=args.keep_going)


def embed_reference(path: Path) -> Tensor:
    """The voice of a recording, float32 [256]."""
    from speechlm.audio import load_audio
    from speechlm.speaker import SAMPLE_RATE, default_speaker_encoder

    return default_speaker_encoder().embed(load_audio(path, SAMPLE_RATE), SAMPLE_RATE)


def list_failure(recording: Recording, error: SpeechLMError | OSError) -> None:
    """Say why a recording cannot be used; raise what would befall every other one too."""
    from speechlm.progress import say

    if is_disk_full(error) or isinstance(error, BrokenPipeError):
        raise error
    source, reason = recording.source, str(error)
    say(f"failed: {reason if source in reason else f'{source}: {reason}'}")


def finish(num_failed: int, num_recordings: int, *, keep_going: bool) -> None:
    """Sum up after :func:`list_failure`.

    Raises:
        PartialFailure: Some recordings failed, and they do not keep from going on.
        InputError: All of them did.
    """
    if num_failed == num_recordings:
        raise InputError(
            f"none of {num_recordings} recordings could be used; the reasons are above"
        )
    if num_failed and not keep_going:
        raise PartialFailure(
            f"{num_failed} of {num_recordings} recordings failed, for the reasons above; "
            "the others are done (--keep-going makes this exit 0)"
        )


def _check_target(job: Job, *, force: bool) -> None:
    source, target = job.recording.audio, job.target
    if not target.exists():
        return
    if source is not None and source.exists() and target.samefile(source):
        raise InputError(f"{target} would overwrite the recording itself; name another -o")
    if not force:
        raise InputError(f"{target} exists already; --force overwrites it")


def _render_one(model: M, job: Job, speak: Speak[M], first_sound: FirstSound[M] | None) -> str:
    """Make and write one recording; say how long it is and how long that took."""
    from speechlm.audio import save_audio

    wave = job.recording.load(model.tokenizer.sample_rate)
    start = time.perf_counter()
    made = speak(model, wave)
    spent_s = time.perf_counter() - start
    if not made.numel():
        raise AudioError(
            f"{job.recording.source}: the model ended without a sound; where it writes text first, "
            "--max-units may be too few"
        )
    save_audio(job.target, made, model.sample_rate)
    duration_s = made.numel() / model.sample_rate
    latency = ""
    if first_sound is not None:
        start = time.perf_counter()
        first_sound(model, wave)
        latency = f"first audio after {1000 * (time.perf_counter() - start):.0f} ms, "
    return (
        f"{job.recording.source} -> {job.target}: {duration_s:.2f} s, {latency}"
        f"real-time factor {spent_s / duration_s:.3f}"
    )


def recordings_of(given: Path) -> list[Recording]:
    """The recordings of one input: an audio file, or a corpus of any form."""
    from speechlm.audio import EXTENSIONS
    from speechlm.data.corpus import Recording, open_corpus

    if given.is_file() and given.suffix.lower() in EXTENSIONS:
        return [Recording(id=given.name, source=str(given), audio=given)]
    return list(open_corpus(given))


def _wav_name(id: str) -> Path:
    """Where the output for a recording goes below the output folder, never outside of it."""
    from speechlm.audio import EXTENSIONS

    path = PurePosixPath(*(part for part in PurePosixPath(id).parts if part not in ("/", "..")))
    if path.suffix.lower() in EXTENSIONS:
        path = path.with_suffix("")
    return Path(path.parent, f"{path.name or 'recording'}.wav")
