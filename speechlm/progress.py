"""Progress on long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL_S = 10.0


class Advance(Protocol):
    """Call it with how much was just finished."""

    def __call__(self, amount: float = 1.0) -> None: ...


@contextmanager
def progress(description: str, total: float, unit: str) -> Iterator[Advance]:
    """Show how far some long work is.

    Args:
        description: What is being done, e.g. ``"tokenizing"``.
        total: How much there is to do, in ``unit``.
        unit: What is counted, e.g. ``"recordings"``.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total)
            yield lambda amount=1.0: bar.advance(task, amount)
        return

    start = last = time.monotonic()
    done = 0.0

    def advance(amount: float = 1.0) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S:
            last = now
            left = (now - start) / done * (total - done) if done else float("nan")
            say(f"{description}: {done:.0f} of {total:.0f} {unit}, {left:.0f} s left")

    yield advance
    say(f"{description}: {done:.0f} {unit} in {time.monotonic() - start:.1f} s")


def say(line: str) -> None:
    """One plain line to the person at the terminal; results go to stdout, this to stderr."""
    print(line, file=sys.stderr, flush=True)
