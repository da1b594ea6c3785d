"""The run configurations that come with this package: ``configs/`` of the repository."""

from __future__ import annotations

from pathlib import Path

from speechlm.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def presets_folder() -> Path:
    """``configs/`` of the checkout, or the copy that the wheel carries in the package.

    Relative to the working folder where it is below it, so that commands stay short.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if folder.is_dir():
            here = Path.cwd()
            return folder.relative_to(here) if folder.is_relative_to(here) else folder
    raise ConfigError("speechlm came without its configs/ folder; install it again")


def presets() -> dict[Path, str]:
    """Each preset's file and the first line of its comment, ordered by name."""
    return {path: _headline(path) for path in sorted(presets_folder().glob("*.yaml"))}


def preset(name: str) -> Path:
    """The file of one preset.

    Raises:
        ConfigError: There is no such preset; those there are are named.
    """
    path = presets_folder() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(known.stem for known in presets())
        raise ConfigError(f"unknown configuration {name!r}, known: {known}")
    return path


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
