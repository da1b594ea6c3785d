"""The command ``speechlm``: find the subcommand, run it, turn errors into lines and exit codes.

A subcommand is a module of this package with ``EXAMPLES``, ``SECTIONS`` (the parts of the
configuration that it reads), ``add_arguments(parser)`` and ``run(args)``; its docstring is
what ``--help`` says first. It is imported only when it is called, and imports torch only
when it runs.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from speechlm import __version__
from speechlm.errors import SpeechLMError

COMMANDS = {
    "demo": "the whole chain on a small world, from nothing to a report",
    "corpus": "make spoken questions with answers, or speech from a text file",
    "fit": "fit a tokenizer on recordings",
    "tokenize": "turn a corpus into units",
    "train": "train the unit language model and put the bundle together",
    "talk": "talk with a bundle: microphone and loudspeaker, or files",
    "generate": "answer or continue recordings",
    "simulate": "let played users speak with a bundle, both sides written down",
    "resynthesize": "recordings to units and back, to hear what the units keep",
    "inspect": "what a tokenizer keeps, costs and promises, as a page",
    "serve": "talk with a bundle in the browser, or by OpenAI's Realtime protocol",
    "bench": "measure what callers of a server experience, one to many at once",
    "score": "how probable the language model finds recordings",
    "evaluate": "measure a run and write its report",
    "export": "write the language model as Hugging Face's transformers opens it",
    "layout": "how units and text become the grid that the LM reads, drawn",
    "list": "the tokenizers, vocoders and configurations there are",
    "doctor": "what this machine can and cannot run, and how to mend it",
}

HELP = """\
usage: speechlm COMMAND ...

Train, talk with and evaluate Speech Language Models: units in, units out, no text in between.

commands:
{commands}

A run is described by one YAML file and key=value overrides, the same for every command:
  speechlm demo --short
  speechlm fit my-recordings/ output=runs/mine
  speechlm train configs/demo.yaml train.max_steps=100
  speechlm generate runs/demo/bundle question.wav -o answer.wav

'speechlm COMMAND --help' says more, with the keys of the configuration and their defaults.

{exit_codes}
"""

EXIT_CODES = """\
exit codes:
  0  done
  1  failed part-way; what was finished is kept, the same command resumes
  2  something you gave cannot be used; the message says what and why"""

FAILED, UNUSABLE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:<14}{summary}" for name, summary in COMMANDS.items())
        print(HELP.format(commands=commands, exit_codes=EXIT_CODES), end="")
        return 0 if words else UNUSABLE
    if words[0] == "--version":
        print(f"speechlm {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        complain(f"unknown command {name!r}; {hint}known: {', '.join(COMMANDS)}")
        return UNUSABLE
    return run_command(name, rest)


def run_command(name: str, words: Sequence[str]) -> int:
    """Parse ``words`` for the command ``name``, run it, and report what goes wrong."""
    from speechlm.cli.arguments import parse

    module = import_module(f"speechlm.cli.{name}")
    args = Namespace()
    try:
        parse(module, name, words, into=args)
        module.run(args)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: 0 after --help, 2 for words it cannot use
        return stop.code if isinstance(stop.code, int) else UNUSABLE
    except KeyboardInterrupt:
        complain("interrupted; run the same command again to resume", label="stopped")
        return FAILED
    except BrokenPipeError:
        # Whoever read the output has left: say nothing, also when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if is_disk_full(error):
            complain(
                f"no space left on the disk of {full_folder(error, args)}; free some and run "
                "the same command again: what was finished is kept"
            )
            return FAILED
        if isinstance(error, SpeechLMError):
            complain(str(error))
            return error.exit_code
        missing = missing_extra(error)
        if missing:
            complain(missing)
            return UNUSABLE
        if isinstance(error, OSError):
            complain(f"{error.filename or 'a file'}: {error.strerror or error}")
            return UNUSABLE
        traceback.print_exc()
        complain("this is a bug in speechlm; please report it with the lines above", label="bug")
        return FAILED
    return 0


def missing_extra(error: Exception) -> str:
    """What to install, when ``error`` is that an optional package is missing; else empty."""
    from speechlm.doctor import EXTRAS, remedy

    if not isinstance(error, ModuleNotFoundError) or error.name not in EXTRAS:
        return ""
    return f"this needs {error.name}, which is not installed; {remedy(error.name)}"


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk or quota is behind ``error``, however a library has wrapped it."""
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        or "No space left on device" in str(cause)
        for cause in causes(error)
    )


def full_folder(error: BaseException, args: Namespace) -> Path:
    """The folder that could not be written to; the run's own where the error names none."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.filename:
            return Path(os.fsdecode(cause.filename)).parent
    config = getattr(args, "config", None)
    return Path(config.output if config else getattr(args, "output", None) or ".")


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def complain(message: str, label: str = "error") -> None:
    """One line on stderr."""
    print(f"speechlm: {label}: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
