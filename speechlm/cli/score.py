"""Say how probable a bundle's language model finds recordings.

Each recording becomes units, and each unit has a probability given those before it. The table
shows the sum of their natural logarithms and its mean by unit and by second of sound: the
nearer to 0, the more probable. By unit, recordings of unequal length compare; by second, bundles
whose units are of unequal length do. Neither the end nor anything but units counts, so a
recording that is cut off is no less probable for it.
"""

from __future__ import annotations

import json
import math
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechlm.cli.render import add_weights, finish, list_failure, recordings_of
from speechlm.errors import InputError, SpeechLMError

if TYPE_CHECKING:
    from speechlm.bundle import SpeechLM
    from speechlm.data.corpus import Recording
    from speechlm.model.fast_linear import Weights
    from speechlm.model.likelihood import Likelihood
    from speechlm.model.unit_lm import UnitLM
    from speechlm.progress import Advance
    from speechlm.units import Units

Span = tuple[float, float | None]
"""Seconds, from and to; None: to the end."""
Scored = tuple["Recording", "Likelihood", "Likelihood"]
"""A recording, what the weights asked for give, and what float32 weights do."""

EXAMPLES = (
    ("speechlm score runs/demo/bundle word.wav nonword.wav", "which of two is more probable"),
    (
        "speechlm score runs/demo/bundle recordings/ --output scores.jsonl --keep-going",
        "a folder of them, whatever single files hold, as JSON lines",
    ),
    (
        "speechlm score runs/demo/bundle story.flac --span 0.5:1.2",
        "what comes from 0.5 s to 1.2 s, given all before it",
    ),
    (
        "speechlm score runs/demo/bundle recordings/ --weights int8",
        "with weights of 8 bits, and what they lose",
    ),
)
SECTIONS = ()

NUMBER = r"\d+\.?\d*|\.\d+"

FRAMES_AT_ONCE = 65_536
"""Frames that are tokenized before they are scored together."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a folder that 'speechlm train' wrote, or a hub id"
    )
    parser.add_argument(
        "recordings",
        nargs="+",
        type=Path,
        metavar="RECORDING",
        help="audio files, or folders, JSON lines and lhotse CutSets of them",
    )
    parser.add_argument(
        "--span",
        type=span,
        metavar="FROM:TO",
        help="count only what is said from FROM to TO, in seconds; either may be left out",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.jsonl",
        help="write JSON lines instead of the table: recording, id, seconds, units, sum, "
        "per_unit, per_second",
    )
    add_weights(parser)
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    parser.add_argument(
        "--keep-going", action="store_true", help="exit 0 also when some recordings failed"
    )


def span(text: str) -> Span:
    """Read ``0.5:1.2``, ``0.5:`` or ``:1.2``."""
    match = re.fullmatch(rf"({NUMBER})?:({NUMBER})?", text)
    start_s = float(match[1] or 0) if match else 0.0
    end_s = float(match[2]) if match and match[2] else None
    if not match or text == ":" or start_s >= (math.inf if end_s is None else end_s):
        raise ArgumentTypeError(f"expected FROM:TO in seconds, FROM below TO, got {text!r}")
    return start_s, end_s


def run(args: Namespace) -> None:
    recordings = [recording for given in args.recordings for recording in recordings_of(given)]
    if args.output is not None:
        _check_output(args)
    from speechlm.bundle import SpeechLM
    from speechlm.progress import progress

    model = SpeechLM.from_pretrained(args.bundle)
    _check_layout(model)
    with progress("scoring", len(recordings), "recordings") as advance:
        scores = list(_score(model, recordings, args.span, args.weights, advance))
    if scores and args.output is None:
        print("\n".join(table(scores)), flush=True)
    elif scores:
        _write(args.output, scores)
        print(f"{len(scores)} of {len(recordings)} recordings -> {args.output}", flush=True)
    if scores and args.weights != "float32":
        print(loss(scores, args.weights), flush=True)
    finish(len(recordings) - len(scores), len(recordings), keep_going=args.keep_going)


def table(scores: Sequence[Scored]) -> list[str]:
    """A line for each recording, and one for all of several."""
    rows = [
        (each.source, one.duration_s or 0.0, one.num_units, one.total) for each, one, _ in scores
    ]
    if len(rows) > 1:
        _, *columns = zip(*rows, strict=True)
        rows.append(("all", *(sum(column) for column in columns)))
    width = max(len("recording"), *(len(recording.source) for recording, *_ in scores))
    lines = [f"{'recording':<{width}}  seconds   units         sum  per unit  per second"]
    for name, seconds, units, total in rows:
        per_unit, per_second = (total / by if by else math.nan for by in (units, seconds))
        lines.append(
            f"{name:<{width}}  {seconds:7.2f}  {units:6.0f}  {total:10.2f}  {per_unit:8.4f}  "
            f"{per_second:10.3f}"
        )
    return lines


def loss(scores: Sequence[Scored], weights: Weights) -> str:
    """How much less probable the recordings are than with float32 weights."""
    num_units = sum(one.num_units for _, one, _ in scores)
    lost = sum(plain.total - one.total for _, one, plain in scores) / num_units
    return f"{weights} weights lose {lost:.4f} nats a unit"


def _check_output(args: Namespace) -> None:
    output = args.output
    if output.suffix != ".jsonl" or output.is_dir():
        raise InputError(f"expected a file that ends in .jsonl after --output, got {output}")
    if any(
        given.exists() and output.exists() and output.samefile(given) for given in args.recordings
    ):
        raise InputError(f"{output} lists the recordings themselves; name another --output")
    if output.exists() and not args.force:
        raise InputError(f"{output} exists already; --force overwrites it")


def _check_layout(model: SpeechLM) -> None:
    """Refuse an LM that takes no speech by itself, before anything is tokenized."""
    import torch

    nothing = torch.zeros(model.tokenizer.num_codebooks, 0, dtype=torch.int64)
    model.lm.layout.encode(model.lm.vocabulary, {"speech": nothing})


def _score(
    model: SpeechLM,
    recordings: Sequence[Recording],
    span: Span | None,
    weights: Weights,
    advance: Advance,
) -> Iterator[Scored]:
    """Those that can be scored, in order; the others are listed.

    Raises:
        InputError: The only one cannot be.
    """

    def refuse(recording: Recording, error: SpeechLMError | OSError) -> None:
        if len(recordings) > 1:
            list_failure(recording, error)
        elif recording.source in str(error):
            raise error
        else:
            raise InputError(f"{recording.source}: {error}") from error

    rate = model.tokenizer.sample_rate
    heard: list[tuple[Recording, Units]] = []
    for index, recording in enumerate(recordings, start=1):
        try:
            heard.append((recording, model.encode(recording.load(rate), rate)))
        except (SpeechLMError, OSError) as error:
            refuse(recording, error)
            advance()
        num_frames = sum(units.num_frames for _, units in heard)
        if heard and (index == len(recordings) or num_frames >= FRAMES_AT_ONCE):
            yield from _score_together(model.lm, heard, span, weights, refuse)
            advance(len(heard))
            heard.clear()


def _score_together(
    lm: UnitLM,
    heard: Sequence[tuple[Recording, Units]],
    span: Span | None,
    weights: Weights,
    refuse: Callable[[Recording, InputError], None],
) -> list[Scored]:
    from speechlm.model.likelihood import score_recordings

    recordings, units = zip(*heard, strict=True)
    spans = [span and (span[0], one.duration_s if span[1] is None else span[1]) for one in units]
    try:
        plain = score_recordings(lm, units, spans_s=spans)
        found = plain
        if weights != "float32":
            found = score_recordings(lm, units, spans_s=spans, weights=weights)
        return list(zip(recordings, found, plain, strict=True))
    except InputError as error:
        if len(heard) == 1:
            refuse(recordings[0], error)
            return []
    half = len(heard) // 2  # the others still share batches
    return [
        one
        for part in (heard[:half], heard[half:])
        for one in _score_together(lm, part, span, weights, refuse)
    ]


def _write(path: Path, scores: Sequence[Scored]) -> None:
    from speechlm.files import write_aside

    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for recording, found, _ in scores:
            row = {
                "recording": recording.source,
                "id": recording.id,
                "seconds": found.duration_s,
                "units": round(found.num_units),
                "sum": found.total,
                "per_unit": found.per_unit,
                "per_second": found.per_second,
            }
            # JSON has no NaN.
            row = {key: None if value != value else value for key, value in row.items()}
            file.write(json.dumps(row) + "\n")
