"""Turn recordings into units and back: what is heard is what the units keep.

This is the best that a language model over these units can sound. The language model itself
takes no part.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from speechlm.cli import render

if TYPE_CHECKING:
    from torch import Tensor

    from speechlm.bundle import SpeechLM

EXAMPLES = (
    ("speechlm resynthesize runs/demo/bundle clip.wav -o back.wav", "one recording"),
    ("speechlm resynthesize runs/demo/bundle my-recordings/ -o back/", "a folder"),
    (
        "speechlm resynthesize runs/demo/bundle old/ new/ -o back/ --force --keep-going",
        "several, replacing what was made before",
    ),
)
SECTIONS = ()


def add_arguments(parser: ArgumentParser) -> None:
    render.add_arguments(parser, output="resynthesized")


def run(args: Namespace) -> None:
    def speak(model: SpeechLM, wave: Tensor) -> Tensor:
        return model.resynthesize(wave, model.tokenizer.sample_rate)

    render.render(args, speak)
