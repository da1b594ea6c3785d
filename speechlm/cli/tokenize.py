"""Turn a corpus into units: a folder of Parquet shards that training reads.

Every core works. A killed run resumes where it was, without loss or duplicate. A recording
that cannot be read is listed with its reason and the rest is done.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from speechlm.cli.arguments import add_run

EXAMPLES = (
    ("speechlm tokenize configs/demo.yaml", "the corpus and the tokenizer of a run"),
    (
        "speechlm tokenize my-recordings/ --tokenizer runs/demo/tokenizer -o runs/mine",
        "any folder of audio, with a tokenizer that was fitted elsewhere",
    ),
    (
        "speechlm tokenize big.jsonl --tokenizer bundle/ -o runs/big --shard 3/64",
        "the third of 64 parts, each on its own machine, all into one folder",
    ),
)
SECTIONS = ("tokenize", "corpus", "tokenizer")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser, takes_corpus=True)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="a fitted tokenizer or a bundle, short for tokenizer.path=FOLDER",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="do only the I-th of N parts of the corpus, 1/N to N/N",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="exit 0 also when recordings were skipped",
    )


def shard(text: str) -> tuple[int, int]:
    """Read ``3/64``."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"expected I/N with 1 <= I <= N, e.g. 3/64, got {text!r}")
    return int(match[1]), int(match[2])


def run(args: Namespace) -> None:
    from speechlm.data.tokenize import tokenize_corpus

    config = args.config
    tokenize_corpus(
        corpus_path=config.corpus_path,
        tokenizer_path=config.tokenizer_path,
        store_path=config.store_path,
        num_workers=config.tokenize.num_workers,
        shard_size=config.tokenize.shard_size,
        keep_going=args.keep_going,
        shard=args.shard,
    )
    print(config.store_path)
