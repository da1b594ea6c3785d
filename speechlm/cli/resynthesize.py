"""Turn recordings into units and back: what is heard is what the units keep.

This is the best that a language model over these units can sound. The language model itself
takes no part.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from speechlm.cli import render

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
    render.render(args, lambda model, wave: iter([model.resynthesize(wave, model.sample_rate)]))
