"""List the tokenizers, vocoders and run configurations that are installed here.

Those of other packages appear once they are installed; nothing is downloaded.
"""

from __future__ import annotations

import inspect
from argparse import ArgumentParser, Namespace

EXAMPLES = (
    ("speechlm list", "everything"),
    ("speechlm list tokenizers", "one kind"),
    ("speechlm list configs", "the files that can be given as RUN.yaml"),
)
SECTIONS = ()
KINDS = ("tokenizers", "vocoders", "configs")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=KINDS, help="only these")


def run(args: Namespace) -> None:
    from speechlm.presets import presets

    for kind in [args.kind] if args.kind else KINDS:
        if kind == "configs":
            rows = [(str(path), headline) for path, headline in presets().items()]
        else:
            rows = plugins(f"speechlm.{kind}")
        print(f"{kind}:" if rows else f"{kind}: none")
        width = max((len(name) for name, _ in rows), default=0)
        for name, headline in rows:
            print(f"  {name:<{width}}  {headline}".rstrip())


def plugins(group: str) -> list[tuple[str, str]]:
    """Name and first docstring line of each plug-in; why, for one that cannot be loaded."""
    from speechlm.plugins import available, plugin

    rows = []
    for name in available(group):
        try:
            described = inspect.getdoc(plugin(group, name)) or ""
        except Exception as error:  # whatever a third party's module does when imported
            described = f"cannot be loaded: {error}"
        rows.append((name, described.partition("\n")[0]))
    return rows
