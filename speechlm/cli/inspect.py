"""Measure a tokenizer: rate, usage, exactness, speed, and what a vocoder makes of its units.

Writes FOLDER/tokenizer.html, a page with figures, drawings and recordings to listen to, and
the same figures as FOLDER/tokenizer.json. Which part is the bottleneck of a speech language
model is answered here first: no model sounds better than its units resynthesized. Word errors
need the packages of pip install 'speechlm[evaluate]'; PNMI needs recordings with phones.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechlm.data.corpus import Recording

EXAMPLES = (
    ("speechlm inspect tokenizer runs/demo/bundle", "on the human recordings of the package"),
    (
        "speechlm inspect tokenizer runs/demo runs/demo/corpus -o inspected/",
        "on a corpus; of one with splits, its test recordings",
    ),
    (
        "speechlm inspect tokenizer runs/a/tokenizer clips/ --vocoder runs/b/vocoder --no-judge",
        "with another vocoder, without word errors",
    ),
)
SECTIONS = ()


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("subject", choices=["tokenizer"], help="what to measure")
    parser.add_argument(
        "part", metavar="PART", help="a bundle, the folder of a run, or of a tokenizer"
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="audio files, or folders, JSON lines and lhotse CutSets of them; default: the human "
        "recordings of the package",
    )
    parser.add_argument(
        "--vocoder",
        metavar="VOCODER",
        help="a vocoder's folder, or its name where it needs no training; default: the one beside "
        "the tokenizer, else the one that the tokenizer names",
    )
    parser.add_argument(
        "--num-recordings",
        type=int,
        default=120,
        metavar="N",
        help="measure a drawn sample of so many (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the draws (%(default)s)")
    parser.add_argument("--no-judge", action="store_true", help="leave word errors out")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("inspected"),
        metavar="FOLDER",
        help="where the page and the figures go (%(default)s)",
    )


def run(args: Namespace) -> None:
    from speechlm.errors import PluginError
    from speechlm.evaluation.figures import require_matplotlib
    from speechlm.evaluation.inspection import inspect_tokenizer
    from speechlm.evaluation.inspection_report import write_inspection
    from speechlm.files import write_json
    from speechlm.plugins import load_tokenizer
    from speechlm.progress import say
    from speechlm.resynthesis import Resynthesizer

    require_matplotlib()
    recordings, others = choose(args.inputs, args.num_recordings, args.seed)
    resynthesizer: Resynthesizer | None
    try:
        resynthesizer = Resynthesizer.open(args.part, args.vocoder)
        tokenizer = resynthesizer.tokenizer
    except PluginError as error:
        if args.vocoder is not None:
            raise
        say(f"without resynthesis: {error}")
        resynthesizer, tokenizer = None, load_tokenizer(args.part)
    figures, samples = inspect_tokenizer(
        tokenizer,
        recordings,
        resynthesizer=resynthesizer,
        others=others,
        judge=not args.no_judge,
        seed=args.seed,
    )
    rates = tokenizer.sample_rate, tokenizer.sample_rate
    if resynthesizer is not None:
        rates = tokenizer.sample_rate, resynthesizer.sample_rate
    write_inspection(args.output / "tokenizer.html", figures, samples, rates)
    write_json(args.output / "tokenizer.json", figures)
    for line in summary(figures):
        print(line)
    print(args.output / "tokenizer.html")
    print(args.output / "tokenizer.json")


def choose(inputs: list[Path], num_recordings: int, seed: int) -> tuple[list[Recording], list[str]]:
    """A drawn sample of the recordings, and the texts of all of them."""
    from speechlm.cli.render import recordings_of
    from speechlm.data.human import human_clips

    if inputs:
        found = [recording for given in inputs for recording in recordings_of(given)]
    else:
        found = [
            one for clip in human_clips("prompts").values() for one in recordings_of(clip.path)
        ]
    texts = sorted({recording.text for recording in found if recording.text})
    held_out = [recording for recording in found if recording.split == "test"]
    candidates = held_out or found
    if len(candidates) > num_recordings:
        candidates = random.Random(seed).sample(candidates, num_recordings)
    return candidates, texts


def summary(figures: dict[str, Any]) -> list[str]:
    """The figures that matter most, a line each."""
    tokenizer, rates, found = figures["tokenizer"], figures["rates"], figures["agreement"]
    lines = [
        f"{tokenizer['fingerprint']}: {tokenizer['num_codebooks']} x {tokenizer['vocab_size']} "
        f"units at {tokenizer['frame_rate']:g} Hz, {tokenizer['bits_per_second']:.0f} bit/s "
        f"({rates['entropy_bits_per_second']:.0f} by entropy), "
        f"{rates['collapsed_units_per_second']:.1f} units/s collapsed",
        "used: "
        + ", ".join(
            f"{row['used']} of {row['size']} (perplexity {row['perplexity']:.0f})"
            for row in figures["codebooks"]
        ),
        f"the same in a batch: {100 * found['batch']:.2f} %, streamed: "
        + ", ".join(f"{100 * value:.2f} % by {size}" for size, value in found["chunks"].items()),
        f"tokenizes at {figures['speed']['times_real_time']:.0f} x real time",
    ]
    if "phones" in figures:
        phones = figures["phones"]
        lines.append(
            f"PNMI {phones['pnmi']:.3f}, phone purity {phones['phone_purity']:.3f}, "
            f"cluster purity {phones['cluster_purity']:.3f}"
        )
    if "resynthesis" in figures:
        resynthesis = figures["resynthesis"]
        lines.append(
            f"{resynthesis['vocoder']} renders at {resynthesis['times_real_time']:.0f} x real "
            f"time, first sound after {resynthesis['first_sound_ms']:.0f} ms"
        )
        judge = resynthesis.get("judge", {"left_out": "--no-judge"})
        if "left_out" in judge:
            lines.append(f"word error not measured: {judge['left_out']}")
        else:
            recorded, rendered, grown = (
                judge[name] for name in ("recorded", "resynthesized", "grown")
            )
            lines.append(
                f"word error {100 * rendered['word_error']:.1f} % resynthesized, "
                f"{100 * recorded['word_error']:.1f} % recorded: "
                f"{100 * grown['difference']:+.1f} points ({100 * grown['low']:+.1f} to "
                f"{100 * grown['high']:+.1f}), {recorded['n']} recordings"
            )
    return lines
