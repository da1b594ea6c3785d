"""Fit a tokenizer on recordings: learn which sounds its units stand for.

The corpus is a folder of audio, JSON lines or a lhotse CutSet; a bounded, seeded sample of it
is heard, so hours of audio fit in bounded memory, and a fit that was killed goes on where it was.
A tokenizer that was published needs no corpus. It lands in OUTPUT/tokenizer.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace

from speechlm.cli.arguments import add_run

EXAMPLES = (
    ("speechlm fit my-recordings/ -o runs/mine", "on a folder of audio"),
    ("speechlm fit configs/demo.yaml", "on the corpus that 'speechlm corpus' made"),
    (
        "speechlm fit cuts.jsonl.gz tokenizer.options.num_units=200 seed=7",
        "on a lhotse CutSet, with an option of the tokenizer",
    ),
    (
        "speechlm fit my-recordings/ tokenizer.name=ssl-kmeans "
        "tokenizer.options='{model: facebook/hubert-base-ls960, layer: 9, num_units: 1000}'",
        "k-means over a layer of HuBERT",
    ),
    (
        "speechlm fit tokenizer.name=ssl-kmeans tokenizer.options.preset=twist --trust",
        "a published pair, whose k-means is a pickle",
    ),
    (
        "speechlm fit -o runs/twist vocoder.name=unit-hifigan "
        "vocoder.options='{checkpoint: G.pt, config: G.json}'",
        "and a published vocoder of its units",
    ),
)
SECTIONS = ("tokenizer", "corpus", "vocoder")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser, takes_corpus=True)
    parser.add_argument(
        "--trust",
        action="store_true",
        help=(
            "read a k-means that scikit-learn has pickled, though a pickle can run any program; "
            "short for tokenizer.options.trust=true"
        ),
    )


def run(args: Namespace) -> None:
    from speechlm.data.fitting import fit_tokenizer, take_vocoder

    config = args.config
    if args.trust:
        options = {**config.tokenizer.options, "trust": True}
        config = replace(config, tokenizer=replace(config.tokenizer, options=options))
    fit_tokenizer(config)
    print(config.tokenizer_path)
    if config.train.part == "unit-lm" and take_vocoder(config):
        print(config.vocoder_path)
