"""``speechlm evaluate listen make`` and ``speechlm evaluate listen analyse``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechlm.errors import InputError
from speechlm.evaluation.listening.kinds import KINDS


def add_arguments(parser: ArgumentParser) -> None:
    """Let a parser take what ``make`` is told beside folders and ``-o``."""
    parser.add_argument(
        "--kind",
        choices=list(KINDS),
        default="mos",
        help="of listening test: scores from 1 to 5 (mos), a comparison from -3 to 3 (cmos), a "
        "preference (ab), or sliders beside a reference, the first folder (mushra)",
    )
    parser.add_argument("--question", default="", help="what listeners are asked")
    parser.add_argument(
        "--checks", type=int, default=3, metavar="N", help="trials that tell what to answer"
    )
    parser.add_argument(
        "--same-loudness", action="store_true", help="bring all recordings to one mean square"
    )


def listen(words: Sequence[str], args: Namespace, seed: int) -> Iterator[str]:
    """Do what the words after ``listen`` say, and give lines to print.

    Args:
        words: ``make FOLDER...`` or ``analyse TEST ANSWERS...``.
        args: With ``output`` and what :func:`add_arguments` added.
        seed: Of names and orders, or of resamples.

    Raises:
        InputError: Other words, or see :func:`make_test` and :func:`analyse`.
    """
    match list(words):
        case ["make", *folders]:
            yield from _make([Path(folder) for folder in folders], args, seed)
        case ["analyse", test, *answers]:
            yield from _analyse(Path(test), [Path(path) for path in answers], args, seed)
        case _:
            raise InputError(
                "expected 'listen make FOLDER_A FOLDER_B ... -o TEST' or 'listen analyse TEST "
                f"ANSWERS.json ...', got 'listen {' '.join(words)}'"
            )


def _make(folders: Sequence[Path], args: Namespace, seed: int) -> Iterator[str]:
    from speechlm.evaluation.listening.making import KEY_NAME, PAGE_FOLDER, make_test

    output = args.output or Path("listening")
    yield from make_test(
        folders,
        output,
        args.kind,
        question=args.question,
        checks=args.checks,
        equal_loudness=args.same_loudness,
        seed=seed,
    )
    yield f"{output / PAGE_FOLDER}: give this folder to listeners, they open index.html"
    yield f"{output / KEY_NAME}: keep this one, it tells which system is which"


def _analyse(test: Path, answers: Sequence[Path], args: Namespace, seed: int) -> Iterator[str]:
    from speechlm.evaluation.listening.analysis import LISTENING_NAME, analyse, listening_table

    output = args.output or test / "analysis"
    yield from listening_table(analyse(test, answers, output, seed))
    yield str(output / LISTENING_NAME)
