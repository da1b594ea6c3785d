"""Measure a run and write its report, or measure a model by benchmarks.

With a run's configuration: OUTPUT/report.html and OUTPUT/report.json. Answers are judged by a
speech recognizer that this project did not train, always beside what the same judge gives the
recorded answers and their resynthesis. Needs the packages of pip install 'speechlm[evaluate]'.

With a model and --suite: FOLDER/results.jsonl, a row a figure with its 95 % interval, and a
table. The model may be a bundle, a tokenizer's folder, mfcc or logmel (for abx), or a folder of
recordings that something else made. What cannot be measured gives a row that says why. Killed,
the same command goes on where it was. docs/evaluation.md defines every figure.

'compare A B' sets two such folders side by side, and writes a page. 'listen make A B' makes a
listening test of folders of recordings, 'listen analyse TEST ANSWERS' reads the answers.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from speechlm.cli.arguments import add_run
from speechlm.errors import InputError, PartialFailure
from speechlm.evaluation.listening.command import add_arguments as add_listening
from speechlm.evaluation.listening.command import listen
from speechlm.evaluation.tasks.catalogue import described, parse_suites

EXAMPLES = (
    ("speechlm evaluate configs/demo.yaml", "the run of the demo"),
    ("speechlm evaluate configs/demo.yaml evaluate.num_questions=40", "a quick look"),
    ("speechlm evaluate -o runs/mine generate.temperature=0.7", "sampled answers of another run"),
    (
        "speechlm evaluate runs/demo/bundle --suite swuggy=sLM21/lexical/dev --suite tsc=tSC/ "
        "-o evaluated/demo",
        "benchmarks as they are published",
    ),
    (
        "speechlm evaluate compare evaluated/demo evaluated/mine",
        "which of two is better, and is it",
    ),
)
SECTIONS = ("evaluate", "generate", "corpus")
COMPARE, LISTEN = "compare", "listen"


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser, takes_models=True)
    listed = "\n".join(f"  {line}" for line in described())
    parser.description = f"{__doc__}\nbenchmarks, with what their folder holds:\n{listed}"
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a benchmark and the folder of its data, as it is published, or the name of one that "
        "makes its data on the spot; they are listed above. 'mini' is all those. May be repeated",
    )
    parser.add_argument(
        "--asr",
        metavar="FOLDER",
        help="folder or hub id of a Whisper to write speech down with, as "
        "openai/whisper-large-v3-turbo (pocketsphinx)",
    )
    parser.add_argument(
        "--text-lm",
        metavar="FOLDER",
        help="folder or hub id of a causal text LM for perplexities, as "
        "meta-llama/Llama-3.2-1B (the trigrams of pocketsphinx)",
    )

    add_listening(parser)


def run(args: Namespace) -> None:
    if args.models[:1] == [COMPARE]:
        _compare(args)
    elif args.models[:1] == [LISTEN]:
        for line in listen(args.models[1:], args, args.config.seed):
            print(line)
    elif args.suite:
        _run_suites(args)
    elif args.models:
        raise InputError(
            f"expected --suite NAME=FOLDER beside the model {args.models[0]}, or a run's "
            "configuration instead of it"
        )
    else:
        from speechlm.evaluation.evaluate import evaluate

        evaluate(args.config)
        print(args.config.output / "report.html")
        print(args.config.output / "report.json")


def _run_suites(args: Namespace) -> None:
    from speechlm.evaluation.tasks.job import System
    from speechlm.evaluation.tasks.results import RESULTS_NAME, table
    from speechlm.evaluation.tasks.suite import run_suites

    if len(args.models) != 1:
        raise InputError(
            f"expected one model before --suite, got {', '.join(args.models) or 'none'}"
        )
    output = args.output or Path("evaluated")
    suites = parse_suites(args.suite)
    rows = run_suites(
        System(args.models[0]),
        suites,
        output,
        args.config.seed,
        asr=args.asr,
        text_lm=args.text_lm,
    )
    print("\n".join(table(rows)))
    print(output / RESULTS_NAME)
    if failed := [row for row in rows if row.error]:
        raise PartialFailure(f"{len(failed)} of {len(rows)} rows have no figure, see above")


def _compare(args: Namespace) -> None:
    from speechlm.evaluation.tasks.compare import compare, comparison_table
    from speechlm.evaluation.tasks.comparison_page import write_comparison

    folders = [Path(folder) for folder in args.models[1:]]
    if len(folders) < 2:
        raise InputError(
            "expected two folders or more after 'compare', got "
            f"{', '.join(map(str, folders)) or 'none'}"
        )
    seed = args.config.seed
    print("\n".join(comparison_table(compare(folders, seed))))
    print(write_comparison(folders, (args.output or Path("evaluated")) / "compare.html", seed))
