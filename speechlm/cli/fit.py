"""Fit a tokenizer on recordings: learn which sounds its units stand for.

The corpus is a folder of audio, JSON lines or a lhotse CutSet; a bounded, seeded sample of it
is heard, so hours of audio fit in bounded memory. The tokenizer lands in OUTPUT/tokenizer.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from speechlm.cli.arguments import add_run

EXAMPLES = (
    ("speechlm fit my-recordings/ -o runs/mine", "on a folder of audio"),
    ("speechlm fit configs/demo.yaml", "on the corpus that 'speechlm corpus' made"),
    (
        "speechlm fit cuts.jsonl.gz tokenizer.options.num_units=200 seed=7",
        "on a lhotse CutSet, with an option of the tokenizer",
    ),
)
SECTIONS = ("tokenizer", "corpus")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser, takes_corpus=True)


def run(args: Namespace) -> None:
    from speechlm.data.fitting import fit_tokenizer

    fit_tokenizer(args.config)
    print(args.config.tokenizer_path)
