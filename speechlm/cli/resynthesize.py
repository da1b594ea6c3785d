"""Turn recordings into units and back: what is heard is what the units keep.

This is the best that a language model over these units can sound. The language model itself
takes no part: the folder of a run that has none, or a tokenizer's alone, does as well.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from speechlm.cli import render

if TYPE_CHECKING:
    from torch import Tensor

    from speechlm.resynthesis import Resynthesizer

EXAMPLES = (
    ("speechlm resynthesize runs/demo/bundle clip.wav -o back.wav", "one recording"),
    (
        "speechlm resynthesize runs/a/tokenizer clip.wav -o back.wav --vocoder runs/b/vocoder",
        "a tokenizer with a vocoder that was trained for it",
    ),
    ("speechlm resynthesize runs/demo/bundle my-recordings/ -o back/", "a folder"),
    (
        "speechlm resynthesize runs/demo/bundle old/ new/ -o back/ --force --keep-going",
        "several, replacing what was made before",
    ),
)
SECTIONS = ()


def add_arguments(parser: ArgumentParser) -> None:
    render.add_arguments(
        parser,
        output="resynthesized",
        bundle="a bundle, the folder of a run, or of a tokenizer; or a hub id",
    )
    parser.add_argument(
        "--vocoder",
        metavar="VOCODER",
        help="a vocoder's folder, or its name where it needs no training; default: the one beside "
        "the tokenizer, else the one that the tokenizer names",
    )


def run(args: Namespace) -> None:
    def load() -> Resynthesizer:
        from speechlm.bundle import SpeechLM
        from speechlm.resynthesis import Resynthesizer

        if Path(args.bundle).exists():
            return Resynthesizer.open(args.bundle, args.vocoder)
        return SpeechLM.from_pretrained(args.bundle)

    def speak(model: Resynthesizer, wave: Tensor) -> Tensor:
        return model.resynthesize(wave, model.tokenizer.sample_rate)

    render.render(args, load, speak)
