"""Files that are published at a plain address, kept once they are here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

from speechlm.errors import CheckpointError, ConfigError
from speechlm.files import sha256_of


def is_address(source: str) -> bool:
    """Whether it is an address of the web, not a path."""
    return source.startswith(("https://", "http://"))


def fetch(source: str) -> Path:
    """The file at an address or path, downloaded into torch's hub folder where it is not there.

    Raises:
        CheckpointError: There is no such file, or it cannot be downloaded.
    """
    if not is_address(source):
        path = Path(source).expanduser()
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; expected a path or https://...")
        return path
    import torch.hub

    # Not by its name alone: that of many k-means is km.bin.
    name = f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{Path(source).name}"
    path = Path(torch.hub.get_dir()) / "speechlm" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source, str(path))
        except (URLError, OSError) as error:
            raise CheckpointError(
                f"{source} cannot be downloaded ({error}); download it elsewhere and give the "
                "file's path instead"
            ) from error
    return path


def check_sha256(path: Path, expected: str, name: str) -> None:
    """Refuse a file of another SHA-256 than ``expected``, or than begins with it.

    Args:
        path: The file.
        expected: 8 to 64 hexadecimal digits.
        name: What says so, for the error.

    Raises:
        CheckpointError: The file is another, or was changed.
        ConfigError: ``expected`` is no SHA-256.
    """
    expected = expected.lower()
    if not re.fullmatch(r"[0-9a-f]{8,64}", expected):
        raise ConfigError(f"{name}: expected 8 to 64 hexadecimal digits, got {expected!r}")
    found = sha256_of(path)
    if not found.startswith(expected):
        raise CheckpointError(
            f"{path} has the SHA-256 {found[: max(16, len(expected))]}, expected {expected} "
            f"({name}): it is another file or was changed; download it again"
        )
