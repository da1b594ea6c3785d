"""What the subcommands share: the words that name a run, and the text of ``--help``."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from speechlm.cli.main import EXIT_CODES
from speechlm.config import RunConfig, load_config
from speechlm.errors import ConfigError

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
RUN_WORDS = "[RUN.yaml] [key=value ...]"


def parse(module: ModuleType, name: str, words: Sequence[str], *, into: Namespace) -> None:
    """Read the words of one subcommand into ``into``.

    A command that takes a run finds it resolved in ``into.config``.
    """
    parser = ArgumentParser(
        prog=f"speechlm {name}",
        description=inspect.getdoc(module),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    if {"-h", "--help"} & set(words):
        parser.epilog = epilog(module.EXAMPLES, module.SECTIONS)
    # Intermixed: options may stand between the words, as people write them.
    parser.parse_intermixed_args(list(words), namespace=into)
    if hasattr(into, "words"):
        into.config = read_config(into)


def add_run(
    parser: ArgumentParser, *, takes_corpus: bool = False, takes_models: bool = False
) -> None:
    """Let the command take ``[CORPUS] [RUN.yaml] [key=value ...]`` and ``-o``.

    With ``takes_models``, words that are neither end up in ``args.models`` instead.
    """
    corpus = "[CORPUS] " if takes_corpus else "[MODEL ...] " if takes_models else ""
    parser.usage = f"%(prog)s [options] {corpus}{RUN_WORDS}"
    parser.add_argument(
        "words",
        nargs="*",
        metavar=corpus + RUN_WORDS,
        help=(
            "the run: a YAML file holding what differs from the defaults below, and single "
            "values (train.max_steps=100)"
            + ("; with --suite the model, a bundle's folder" if takes_models else "")
            + (
                "; any other word is the corpus: a folder of audio, JSON lines or a lhotse "
                "CutSet, short for corpus.path=..."
                if takes_corpus
                else ""
            )
        ),
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the run's files are, short for output=FOLDER",
    )
    parser.set_defaults(takes_corpus=takes_corpus, models=[] if takes_models else None)


def read_config(args: Namespace) -> RunConfig:
    """Resolve the words of a command into the run's configuration.

    Raises:
        ConfigError: Two YAML files or two corpora, a word of no kind, or see
            :func:`speechlm.config.load_config`.
    """
    files, overrides, corpora = [], [], []
    for word in args.words:
        if word.endswith((".yaml", ".yml")) and not OVERRIDE.match(word):
            files.append(Path(word))
        elif OVERRIDE.match(word):
            overrides.append(word)
        elif args.takes_corpus:
            corpora.append(Path(word))
        elif args.models is not None:
            args.models = [*args.models, word]
        else:
            raise ConfigError(f"expected RUN.yaml or key=value, got {word!r}")
    for many, what in ((files, "configuration"), (corpora, "corpus")):
        if len(many) > 1:
            raise ConfigError(f"expected one {what}, got {', '.join(map(str, many))}")
    config = load_config(files[0] if files else None, overrides)
    if corpora:
        config = replace(config, corpus=replace(config.corpus, path=corpora[0]))
    if args.output is not None:
        config = replace(config, output=args.output)
    if getattr(args, "tokenizer", None) is not None:
        config = replace(config, tokenizer=replace(config.tokenizer, path=args.tokenizer))
    return config


def epilog(examples: Sequence[tuple[str, str]], sections: Sequence[str]) -> str:
    """Examples, the configuration's keys and the exit codes, as ``--help`` ends."""
    parts = ["examples:\n" + "\n".join(f"  # {what}\n  {line}" for line, what in examples)]
    if sections:
        parts.append("configuration keys, for RUN.yaml and key=value:\n" + keys_help(sections))
    return "\n\n".join([*parts, EXIT_CODES])


def keys_help(sections: Sequence[str]) -> str:
    """Every key of the named sections, its default and its docstring."""
    hints = get_type_hints(RunConfig)
    lines = list(_fields_help(RunConfig, prefix=""))
    for section in sections:
        kind = hints[section]
        lines += ["", *_wrapped(f"{section}: {inspect.getdoc(kind)}", indent=2)]
        lines += _fields_help(kind, prefix=f"{section}.")
    return "\n".join(lines)


def _fields_help(kind: type, *, prefix: str) -> list[str]:
    described = field_docstrings(kind)
    hints = get_type_hints(kind)
    lines = []
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            if prefix:  # a section of a section; those of the run are asked for by name
                lines += _fields_help(hints[field.name], prefix=f"{prefix}{field.name}.")
            continue
        lines.append(f"  {prefix}{field.name}={_default(field)}")
        if described.get(field.name):
            lines += _wrapped(described[field.name], indent=6)
    return lines


def field_docstrings(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those it extends, from the source."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            found |= _own_docstrings(base)
    return found


def _own_docstrings(kind: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    (definition,) = tree.body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = inspect.cleandoc(str(after.value.value))
    return found


def _default(field: Field[Any]) -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)


def _wrapped(text: str, *, indent: int) -> list[str]:
    margin = " " * indent
    text = text.replace("``", "'")
    return textwrap.wrap(text, width=96, initial_indent=margin, subsequent_indent=margin)
