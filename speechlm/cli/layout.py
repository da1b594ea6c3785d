"""Show how a layout turns units and text into the grid that the LM reads.

'list' has a line on each layout; 'show NAME' draws one: rows are what the LM reads side by side,
columns are its positions, u0:3 is stream 0 of frame 3, t:3 is text token 3, a dot is fill.
"""

from __future__ import annotations

import inspect
import math
import re
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from speechlm.layouts.picture import Cell
    from speechlm.layouts.plan import PlannedLayout

EXAMPLES = (
    ("speechlm layout list", "all of them, with a line on each"),
    ("speechlm layout show delay --codebooks 4 --frames 6", "MusicGen's"),
    ("speechlm layout show delay --codebooks 3 --delays 0,1,1", "Moshi's delays"),
    ("speechlm layout show duplex text=true --codebooks 8", "Moshi's 17 rows"),
    ("speechlm layout show interleave-chunks text_chunk=2 speech_chunk=3", "with options"),
)
SECTIONS = ()
SINGLE = {"flat", "grouped", "prosody", "interleave-words", "interleave-chunks", "chain"}
"""Layouts of a tokenizer of one codebook, which are shown with one."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show"), help="all layouts, or one")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the layout to show")
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="options of the layout, as in RUN.yaml"
    )
    parser.add_argument(
        "-k", "--codebooks", type=int, metavar="K", help="of the tokenizer (1, or 3 for several)"
    )
    parser.add_argument("-f", "--frames", type=int, default=4, help="unit frames (%(default)s)")
    parser.add_argument("--tokens", type=int, default=3, help="text tokens (%(default)s)")
    parser.add_argument("--delays", help="short for delays=..., as 0,1,1")
    parser.add_argument(
        "--turns", action="store_true", help="a question and its answer, not a recording alone"
    )
    parser.add_argument(
        "--frame-rate", type=float, default=25.0, help="unit frames a second (%(default)s)"
    )


def run(args: Namespace) -> None:
    from rich.console import Console

    from speechlm.errors import InputError
    from speechlm.layouts.picture import picture, sample_content
    from speechlm.layouts.registry import LAYOUTS, build_layout, layout_options

    # Not wrapped by rich: the columns are cut to the width here, with a header on each block.
    console = Console(highlight=False, soft_wrap=True)
    if args.action == "list" or args.name is None:
        width = max(map(len, LAYOUTS))
        for name in LAYOUTS:
            console.print(f"{name:<{width}}  {described(name)[0]}", markup=False)
        return
    if args.frames < 0 or args.tokens < 0 or not 0 < args.frame_rate < math.inf:
        raise InputError("expected 0 or more frames and tokens, and a frame rate above 0")
    options = dict(option(word) for word in args.options)
    if args.delays is not None:
        options |= [option(f"delays={args.delays}")]
    codebooks = args.codebooks
    if codebooks is None:
        codebooks = 1 if args.name in SINGLE else 3
        if args.name == "delay" and isinstance(options.get("delays"), list):
            codebooks = len(options["delays"])
    layout = build_layout(args.name, options, codebooks)
    content = sample_content(
        layout, num_frames=args.frames, num_tokens=args.tokens, asks=args.turns
    )
    console.print(f"{args.name}: {described(args.name)[0]}", markup=False)
    console.print(described(args.name)[1], markup=False)
    console.print()
    for row in drawn(picture(layout, content), console.width):
        console.print(row)
    for line in facts(layout, args.frame_rate):
        console.print(line, markup=False)
    known = ", ".join(f"{key}={shown(value)}" for key, value in layout_options(args.name).items())
    console.print(f"options, with their defaults: {known or 'none'}", markup=False)


def option(word: str) -> tuple[str, Any]:
    """``key=value`` parted, the value read as YAML; ``0,1,1`` is a list.

    Raises:
        ConfigError: There is no ``=``, or no YAML after it.
    """
    import yaml

    from speechlm.errors import ConfigError

    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"expected an option as key=value, got {word!r}")
    try:
        return key, yaml.safe_load(
            f"[{value}]" if re.fullmatch(r"[\d.]+(,[\d.]+)+", value) else value
        )
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of {word!r}") from None


def shown(value: Any) -> str:
    """A default as it would be written after ``key=``."""
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    )


def described(name: str) -> tuple[str, str]:
    """First line and sources of a layout's docstring."""
    from speechlm.layouts.registry import LAYOUTS

    docstring = inspect.getdoc(LAYOUTS[name]) or ""
    sources = re.search(r"Sources?: .*", docstring, flags=re.DOTALL)
    headline = docstring.partition("\n")[0].replace("``", "")
    return headline, " ".join(sources[0].replace("``", "").split()) if sources else ""


def drawn(rows: list[list[Cell]], width: int) -> list[Text]:
    """The picture in lines of at most ``width`` characters, in blocks of columns."""
    from rich.text import Text

    margin = len(f"row {len(rows) - 1} ")
    blocks: list[list[int]] = [[]]
    widths = [1 + max(len(row[at].label) for row in rows) for at in range(len(rows[0]))]
    widths = [max(room, len(f" {at}")) for at, room in enumerate(widths)]
    for column, room in enumerate(widths):
        if blocks[-1] and margin + sum(widths[at] for at in blocks[-1]) + room > width:
            blocks.append([])
        blocks[-1].append(column)
    lines = []
    for columns in blocks:
        numbers = "".join(f"{column:>{widths[column]}}" for column in columns)
        lines.append(Text(f"{'':<{margin}}{numbers}", style="dim"))
        for at, row in enumerate(rows):
            line = Text(f"row {at}".ljust(margin))
            for column in columns:
                cell = row[column]
                line.append(f"{cell.label:>{widths[column]}}", style=style_of(cell))
            lines.append(line)
        lines.append(Text())
    return lines


def style_of(cell: Cell) -> str:
    from speechlm.layouts.plan import CONTROL, TEXT

    if cell.kind == CONTROL:
        return "dim" if cell.label == "·" else "bold magenta"
    if cell.kind == TEXT:
        return "yellow"
    return ("cyan", "green", "blue", "bright_cyan", "bright_green", "bright_blue")[cell.kind % 6]


def facts(layout: PlannedLayout, frame_rate: float) -> list[str]:
    """Rows, ids and positions a second."""
    from speechlm.layouts.picture import describe_rows, sample_content
    from speechlm.layouts.vocabulary import CONTROLS, Vocabulary

    vocabulary = Vocabulary(
        tokenizer_fingerprint="any",
        stream_sizes=layout.stream_sizes((1000,) * layout.spec.num_codebooks),
        text_size=10_000 if layout.has_text else 0,
        text_fingerprint="any" if layout.has_text else None,
    )
    lines = [
        f"row {at}: {held}, {len(ids) - len(CONTROLS)} ids"
        for at, (held, ids) in enumerate(
            zip(describe_rows(layout), layout.row_ids(vocabulary), strict=True)
        )
    ]
    lines[0] += f" and {len(CONTROLS)} controls (with 1000 units a codebook" + (
        ", 10000 text tokens)" if layout.has_text else ")"
    )
    sizes = [
        len(
            layout.encode(
                vocabulary,
                sample_content(layout, num_frames=frames, num_tokens=tokens, asks=False),
            )
        )
        for frames, tokens in ((120, 0), (240, 0), (240, 60))
    ]
    # A question takes as many positions as its answer.
    turns = 2 if layout.name == "chain" else 1
    a_frame = (sizes[1] - sizes[0]) / 120 / turns
    a_second = (
        f"{a_frame:.3g} a unit frame, {a_frame * frame_rate:.4g} a second at {frame_rate:g} Hz"
    )
    lines.append(f"positions: {a_second}" + ("; 1 a text token" if sizes[2] > sizes[1] else ""))
    return lines
