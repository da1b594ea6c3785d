"""Train the unit language model on a unit store, then put the bundle together.

With train.part=tokenizer or train.part=vocoder it trains that part instead, on the recordings
of the corpus (a vocoder also on their units), and saves it to OUTPUT/tokenizer or
OUTPUT/vocoder, where the other commands look for it.

Checkpoints are written as it goes: a killed run resumes from the last one, with the losses
that it would have had. The bundle (tokenizer, language model, vocoder) lands in OUTPUT/bundle.
Needs fairseq2: pip install 'speechlm[train]'.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from speechlm.cli.arguments import add_run

EXAMPLES = (
    ("speechlm train configs/demo.yaml", "what 'speechlm tokenize' prepared for the run"),
    (
        "speechlm train configs/demo.yaml train.max_steps=100 -o runs/try",
        "another length, another folder",
    ),
    (
        "speechlm train -o runs/mine train.loss_on=all model.num_layers=8",
        "defaults, a larger model",
    ),
    (
        "speechlm train configs/twist.yaml model.text_lm=FOLDER",
        "start from a text LM, here one that 'transformers' saved",
    ),
    (
        "speechlm train -o runs/mine train.part=vocoder vocoder.name=unit-vocos",
        "a vocoder for the units that 'speechlm tokenize' made",
    ),
    (
        "speechlm train -o runs/mine train.part=tokenizer tokenizer.name=causal-codec",
        "a tokenizer on one's own recordings",
    ),
    ("tensorboard --logdir runs/demo/train", "watch it"),
)
SECTIONS = ("train", "model", "layout", "vocoder", "tokenizer", "segments")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)


def run(args: Namespace) -> None:
    if args.config.train.part != "unit-lm":
        from speechlm.training.part_train import train_part

        train_part(args.config)
        is_tokenizer = args.config.train.part == "tokenizer"
        print(args.config.tokenizer_path if is_tokenizer else args.config.vocoder_path)
        return
    from speechlm.bundle import answering_voice, assemble, choose_vocoder
    from speechlm.parts import CONFIG_NAME
    from speechlm.plugins import load_tokenizer
    from speechlm.training.train import train

    # What the bundle will lack is told before hours of training, not after.
    if (args.config.tokenizer_path / CONFIG_NAME).is_file():
        vocoder = choose_vocoder(args.config, load_tokenizer(args.config.tokenizer_path))
        answering_voice(args.config, vocoder)
    train(args.config)
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process puts it together
        assemble(args.config)
        print(args.config.bundle_path)
