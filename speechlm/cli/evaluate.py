"""Measure a run and write its report: OUTPUT/report.html and OUTPUT/report.json.

Answers are judged by a speech recognizer that this project did not train, always beside what
the same judge gives the recorded answers and their resynthesis. Needs the packages of
pip install 'speechlm[evaluate]'.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from speechlm.cli.arguments import add_run

EXAMPLES = (
    ("speechlm evaluate configs/demo.yaml", "the run of the demo"),
    ("speechlm evaluate configs/demo.yaml evaluate.num_questions=40", "a quick look"),
    ("speechlm evaluate -o runs/mine generate.temperature=0.7", "sampled answers of another run"),
)
SECTIONS = ("evaluate", "generate", "corpus")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)


def run(args: Namespace) -> None:
    from speechlm.evaluation.evaluate import evaluate

    evaluate(args.config)
    print(args.config.output / "report.html")
    print(args.config.output / "report.json")
