"""Make a corpus: spoken questions with recorded answers, dialogues, or speech from a text file.

Questions are asked by synthetic voices (espeak-ng from a wheel, and flite where the program
is there); answers are recordings of one human voice that come with this package. Training,
validation and test voices are disjoint. Dialogues have two channels, the user and the model, with
pauses, back-channels, interruptions and remarks, and beside them what happens when. Everything
follows from the seed. A rerun makes only what is missing.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from speechlm.cli.arguments import add_run

EXAMPLES = (
    ("speechlm corpus", "questions and answers, into runs/default/corpus"),
    ("speechlm corpus configs/demo.yaml", "those of the demo"),
    (
        "speechlm corpus corpus.num_train_voices=8 corpus.renditions=1 -o runs/small",
        "few voices, to try something",
    ),
    ("speechlm corpus configs/duplex.yaml", "dialogues of a user and a model, a channel each"),
    (
        "speechlm corpus corpus.kind=text corpus.text=book.txt -o runs/book",
        "each line of a text, spoken, with its transcript and the times of its words",
    ),
)
SECTIONS = ("corpus",)


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)


def run(args: Namespace) -> None:
    from speechlm.data.making import make_corpus

    make_corpus(args.config)
    print(args.config.corpus_path)
