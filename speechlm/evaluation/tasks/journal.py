"""Scores on disk as they come, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCORES_FOLDER = "scores"
"""Where a run keeps its journals, one a benchmark."""


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of a journal; a last line that was cut off is none."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[1:-1]]


class Journal:
    """A file of JSON lines about one thing: what it is about, then a line an item, in order."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Open one, and keep what it has if that is about the same.

        Args:
            path: Made where it is not there.
            about: Whatever decides the items.
        """
        self.path = path
        self.items: list[dict[str, Any]] = []
        head = json.dumps(dict(about), sort_keys=True).encode() + b"\n"
        if path.is_file() and path.read_bytes().startswith(head):
            self.items = read_items(path)
            with path.open("r+b") as file:
                file.truncate(path.read_bytes().rindex(b"\n") + 1)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(head)

    def extend(self, items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Write items as they come, and hand them on."""
        with self.path.open("a", encoding="utf-8") as file:
            for item in items:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
                file.flush()
                self.items.append(item)
                yield item
