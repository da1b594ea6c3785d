"""Writing files so that a killed process or a full disk never leaves half of one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ABANDONED_S = 24 * 3600.0
"""Age at which another machine's leftovers are certainly nobody's."""


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success fsync it and rename it over ``path``.

    The temporary file is removed when the body fails, so ``path`` holds the old content,
    the new content, or nothing, but never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose their format by it.
    aside = _aside(path).with_suffix(path.suffix if len(path.suffix) < 16 else "")
    try:
        yield aside
        _fsync(aside)
        os.replace(aside, path)
        _fsync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def write_folder_aside(folder: Path) -> Iterator[Path]:
    """The same for a folder: fill a temporary one, then swap it in for ``folder``.

    A kill between the two renames of the swap leaves ``folder`` missing, with its old content
    under a name that starts with ``.old-``.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for entry in aside.rglob("*"):
            _fsync(entry)
        _fsync(aside)
        if folder.exists():
            old = aside.with_name(aside.name.replace(".aside-", ".old-"))
            folder.rename(old)
            try:
                aside.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            aside.rename(folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in ``folder`` beside the file they were writing."""
    for entry in folder.glob(".aside-*"):
        found = re.match(r"\.aside-(.+)-(\d+)-[0-9a-f]{16}", entry.name)
        try:
            if found is None or _may_be_in_use(found[1], int(found[2]), entry.lstat().st_mtime):
                continue
        except FileNotFoundError:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _may_be_in_use(host: str, process: int, modified: float) -> bool:
    if host != _host():
        return time.time() - modified < _ABANDONED_S
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _aside(path: Path) -> Path:
    """Where this process, and no other, writes what will be ``path``.

    Not made of the final name itself, which may be at the file system's limit of 255 bytes.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".aside-{_host()}-{os.getpid()}-{digest}")


def _host() -> str:
    # No dot: what follows a dot would be taken for the suffix.
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())[:64]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with write_aside(path) as aside:
        # A file name that is not UTF-8 is no valid text: such bytes stay \udc escapes.
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
