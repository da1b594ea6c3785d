"""Measure a run and write its report, or measure a model by benchmarks.

With a run's configuration: OUTPUT/report.html and OUTPUT/report.json. Answers are judged by a
speech recognizer that this project did not train, always beside what the same judge gives the
recorded answers and their resynthesis. Needs the packages of pip install 'speechlm[evaluate]'.

With a model and --suite: FOLDER/results.jsonl, a row a figure with its 95 % interval, and a
table. A benchmark that cannot be run gives a row that says why. Killed, the same command goes on
where it was. 'speechlm evaluate compare A B' sets two such folders side by side.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from speechlm.cli.arguments import add_run
from speechlm.errors import InputError, PartialFailure

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
COMPARE = "compare"


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser, takes_models=True)
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a benchmark and the folder of its data, as it is published: swuggy, sblimp, ssc, "
        "tsc, salmon, prosaudit; abx (NAME.item beside recordings); or pairs, with a pairs.jsonl "
        "of one's own. mini-swuggy needs no data. May be repeated",
    )


def run(args: Namespace) -> None:
    if args.models[:1] == [COMPARE]:
        _compare(args.models[1:])
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
    from speechlm.evaluation.tasks.suite import parse_suites, run_suites

    if len(args.models) != 1:
        raise InputError(
            f"expected one model before --suite, got {', '.join(args.models) or 'none'}"
        )
    output = args.output or Path("evaluated")
    suites = parse_suites(args.suite)
    rows = run_suites(System(args.models[0]), suites, output, args.config.seed)
    print("\n".join(table(rows)))
    print(output / RESULTS_NAME)
    if failed := [row for row in rows if row.error]:
        raise PartialFailure(f"{len(failed)} of {len(rows)} rows have no figure, see above")


def _compare(folders: list[str]) -> None:
    from speechlm.evaluation.tasks.compare import compare, comparison_table

    if len(folders) < 2:
        raise InputError(
            f"expected two folders or more after 'compare', got {', '.join(folders) or 'none'}"
        )
    print("\n".join(comparison_table(compare([Path(folder) for folder in folders]))))
