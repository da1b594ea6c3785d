"""Measure what callers of a server experience, one to many at once, in real time.

Each caller is a real client of OpenAI's Realtime protocol: it sends its microphone in frames of
20 ms, asks, waits for the answer, and breaks in on some. With --bundle and no URL the bundle is
served on this machine while it lasts; the callers are another process than the server, but they
share its cores. Questions are the corpus that the bundle was trained on (beside it, as 'speechlm
demo' leaves it), --recordings, or are spoken by the embedded voices.

It ends with the number of sessions held: the most callers at which every question was answered,
no answer had a hole, and frames took less time, at p95, than what they say.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from speechlm.dialogue.settings import PRESETS
from speechlm.errors import ConfigError, InputError, PartialFailure, PluginError

if TYPE_CHECKING:
    from speechlm.dialogue.load.questions import Questions

EXAMPLES = (
    ("speechlm bench serve --bundle runs/demo/bundle", "1 to 16 callers of this machine"),
    (
        "speechlm bench serve --bundle runs/demo/bundle --callers 8 --barge-in 0.3 --judge",
        "eight, who break in on answers; are the others right?",
    ),
    (
        "speechlm bench serve https://example.org:8000 --token-file tokens --recordings wavs/",
        "a server that runs elsewhere",
    ),
)
SECTIONS = ()

REPORT_NAME, PICTURE_NAME = "bench.json", "bench.png"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=("serve",), help="what is measured: a server")
    parser.add_argument("url", nargs="?", metavar="URL", help="a server that runs already")
    parser.add_argument(
        "--bundle", metavar="BUNDLE", help="a folder that 'speechlm train' wrote: serve this one"
    )
    parser.add_argument(
        "--callers",
        type=counts,
        default=(1, 2, 4, 8, 16),
        metavar="N,N,...",
        help="how many at once, one level after the other (1,2,4,8,16)",
    )
    parser.add_argument(
        "--questions", type=count, default=10, metavar="N", help="of each caller (%(default)s)"
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        metavar="CORPUS",
        help="ask these: a folder of recordings, JSON lines or a lhotse CutSet",
    )
    parser.add_argument(
        "--barge-in",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="of the answers, broken in on by the next question (%(default)g)",
    )
    parser.add_argument(
        "--turns", choices=tuple(PRESETS), help="how turns are found; default: the server's way"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a token of the server")
    parser.add_argument(
        "--judge", action="store_true", help="let the outside judge say which answers are right"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is asked (%(default)s)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"write {REPORT_NAME} and, with matplotlib, {PICTURE_NAME} there",
    )


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    return tuple(count(word) for word in text.split(","))


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ArgumentTypeError(f"expected a share within 0..1, got {text!r}")
    return value


def run(args: Namespace) -> None:
    if (args.url is None) == (args.bundle is None):
        raise ConfigError("expected the URL of a server, or --bundle to serve one, and not both")
    try:
        from speechlm.dialogue.load import report, running
        from speechlm.dialogue.server.access import read_tokens
    except ModuleNotFoundError as error:
        raise PluginError(
            f"calling a server needs {error.name}; pip install 'speechlm[serve]'"
        ) from error
    from speechlm.dialogue.load.figures import sessions_held
    from speechlm.dialogue.settings import turn_preset
    from speechlm.files import write_json

    tokens = read_tokens(args.token_file)
    questions = _questions(args, max(args.callers) * args.questions)
    if args.judge and not questions.answers:
        raise InputError("--judge needs questions whose answers are known: a corpus with replies")
    levels = []
    with ExitStack() as stack:
        url, pid = running.realtime_url(args.url or ""), None
        if args.bundle is not None:
            words = ["--token-file", str(args.token_file)] if args.token_file else []
            url, pid = stack.enter_context(
                running.own_server(args.bundle, max_sessions=max(args.callers), words=words)
            )
        for num_callers in args.callers:
            level, calls = running.run_level(
                url,
                questions.asked,
                num_callers,
                num_questions=args.questions,
                breaks_in=args.barge_in,
                seed=args.seed,
                token=tokens[0] if tokens else None,
                turns=turn_preset(args.turns) if args.turns else None,
                server_pid=pid,
            )
            if args.judge:
                level["judged"] = report.judge_calls(calls, questions.answers)
            level["load_average"] = round(os.getloadavg()[0], 2)
            levels.append(level)
            print(report.table(levels).splitlines()[-1], flush=True)
    held = sessions_held(levels)
    print(f"\n{report.table(levels)}\n\n{report.MEASURES}\n")
    for level in levels:
        print(_machine(level))
    print(f"sessions held at p95 below the frame: {held}")
    if args.output is not None:
        found = {"sessions_held": held, "cores": os.cpu_count(), "levels": levels}
        asked = {"questions": args.questions, "barge_in": args.barge_in, "seed": args.seed}
        write_json(args.output / REPORT_NAME, {**found, "asked": {**asked, "turns": args.turns}})
        if find_spec("matplotlib"):
            report.draw(args.output / PICTURE_NAME, levels)
    if not any(level["answered"] for level in levels):
        troubles = sorted(
            {code for level in levels for code in level["errors"] | level["refusals"]}
        )
        raise PartialFailure(f"no caller got an answer: {', '.join(troubles) or 'nothing came'}")


def _questions(args: Namespace, num_needed: int) -> Questions:
    from speechlm.dialogue.load.questions import read_questions, speak_questions

    beside = None if args.bundle is None else Path(args.bundle).resolve().parent / "corpus"
    path = args.recordings or (beside if beside is not None and beside.is_dir() else None)
    if path is not None:
        return read_questions(path, num_needed, args.seed)
    return speak_questions(num_needed, args.seed)


def _machine(level: dict[str, object]) -> str:
    """What a level took of this machine."""
    server = level["server_cpu"]
    told = "" if server is None else f", the server {server} cores"
    return (
        f"{level['callers']} callers: they kept {level['generator_cpu']} cores busy{told}; load "
        f"{level['load_average']}; their worst frame was {level['late_ms']} ms late"
    )
