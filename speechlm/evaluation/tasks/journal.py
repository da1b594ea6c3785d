"""Scores on disk as they come, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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
        head = json.dumps(dict(about), sort_keys=True)
        good = 0
        if path.is_file():
            lines = path.read_bytes().split(b"\n")
            # What comes after the last end of a line was cut off.
            if lines[0].decode(errors="replace") == head and len(lines) > 1:
                good = len(lines[0]) + 1
                for line in lines[1:-1]:
                    self.items.append(json.loads(line))
                    good += len(line) + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if good else "wb") as file:
            file.truncate(good)
            if not good:
                file.write(head.encode() + b"\n")

    def extend(self, items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Write items as they come, and hand them on."""
        with self.path.open("a", encoding="utf-8") as file:
            for item in items:
                file.write(json.dumps(item, sort_keys=True) + "\n")
                file.flush()
                self.items.append(item)
                yield item
