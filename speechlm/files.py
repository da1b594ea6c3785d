"""Writing files so that a killed process or a full disk never leaves half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success fsync it and rename it over ``path``.

    The temporary file is removed when the body fails, so ``path`` holds the old content,
    the new content, or nothing, but never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose their format by it. Names may be at the
    # file system's 255-byte limit, so the aside name does not contain the final one.
    aside = path.with_name(f".aside-{os.getpid()}-{abs(hash(path.name)) % 10**10}{path.suffix}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def write_folder_aside(folder: Path) -> Iterator[Path]:
    """The same for a folder: fill a temporary one, then swap it in for ``folder``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".aside-{os.getpid()}-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        if folder.exists():
            old = folder.with_name(f".old-{os.getpid()}-{folder.name}")
            folder.rename(old)
            aside.rename(folder)
            shutil.rmtree(old)
        else:
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
