"""Tokenizers and vocoders by name, found through entry points like any third party's.

A package offers one by its own ``pyproject.toml``::

    [project.entry-points."speechlm.tokenizers"]
    my-tokenizer = "my_package:MyTokenizer"
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from speechlm.errors import PluginError
from speechlm.parts import CONFIG_NAME, part_kind
from speechlm.protocols import AudioTokenizer, Vocoder

TOKENIZERS = "speechlm.tokenizers"
VOCODERS = "speechlm.vocoders"
AUTO = "auto"
"""Instead of a vocoder's name: the one that the tokenizer names."""


def available(group: str) -> dict[str, EntryPoint]:
    """The plug-ins of a group by name, none of them imported."""
    return {point.name: point for point in sorted(entry_points(group=group))}


def plugin(group: str, name: str) -> Any:
    """Import the class registered under ``name``.

    Raises:
        PluginError: The name is not known, or its package cannot be imported.
    """
    known = available(group)
    kind = group.removeprefix("speechlm.").replace("_", " ")
    kind = kind.removesuffix("ies") + "y" if kind.endswith("ies") else kind.removesuffix("s")
    if not known:
        raise PluginError(
            f"no {kind} is registered at all: speechlm is not properly installed; "
            "run 'pip install --force-reinstall speechlm', or 'pip install -e .' in a checkout"
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PluginError(f"unknown {kind} {name!r}, known: {', '.join(known)}{hint}")
    try:
        return known[name].load()
    except ImportError as error:
        raise PluginError(
            f"{kind} {name!r} needs a package that is missing: {error}; "
            f"see what 'speechlm doctor' says of it"
        ) from error


def load_tokenizer(name_or_folder: str | Path) -> AudioTokenizer:
    """Load a tokenizer from its folder, or from a bundle's folder.

    Raises:
        PluginError: Unknown name, or the name of a tokenizer that must be fitted first.
        CheckpointError: The folder is missing, partial, or changed since it was saved.
    """
    folder = _part_folder(Path(name_or_folder), "tokenizer")
    if folder is not None:
        return cast(AudioTokenizer, plugin(TOKENIZERS, part_kind(folder)).load(folder))
    plugin(TOKENIZERS, str(name_or_folder))
    raise PluginError(
        f"tokenizer {name_or_folder!r} is fitted on a corpus before it is used: run "
        f"'speechlm fit CORPUS tokenizer.name={name_or_folder}' and give the folder it writes"
    )


def load_vocoder(name_or_folder: str | Path, tokenizer: AudioTokenizer | None = None) -> Vocoder:
    """Load a vocoder from its folder or a bundle's, or build one by name for ``tokenizer``.

    Raises:
        PluginError: Unknown name, a name without a tokenizer, or ``auto`` where the tokenizer
            names none.
        CheckpointError: The folder is missing, partial, or changed since it was saved.
    """
    folder = _part_folder(Path(name_or_folder), "vocoder")
    if folder is not None:
        vocoder = cast(Vocoder, plugin(VOCODERS, part_kind(folder)).load(folder))
        inside = getattr(getattr(tokenizer, "base", None), "fingerprint", None)
        if tokenizer is None or vocoder.tokenizer_fingerprint != inside:
            return vocoder
        # Made for the tokenizer inside: that one's own vocoder holds it.
        holder = plugin(VOCODERS, cast(Any, tokenizer).default_vocoder)
        return cast(Vocoder, holder.for_tokenizer(tokenizer, vocoder))
    if str(name_or_folder) == AUTO and tokenizer is not None:
        name = getattr(tokenizer, "default_vocoder", None)
        if name is None:
            raise PluginError(
                f"no vocoder renders units of {tokenizer.fingerprint!r} without training: train "
                "one, 'speechlm train train.part=vocoder vocoder.name=unit-vocos', or name one"
            )
        return cast(Vocoder, plugin(VOCODERS, name).for_tokenizer(tokenizer))
    known = plugin(VOCODERS, str(name_or_folder))
    if tokenizer is None:
        raise PluginError(
            f"vocoder {name_or_folder!r} renders the units of one tokenizer: give that too, "
            f"load_vocoder({str(name_or_folder)!r}, tokenizer=...)"
        )
    return cast(Vocoder, known.for_tokenizer(tokenizer))


def _part_folder(path: Path, part: str) -> Path | None:
    """The folder of ``part`` in ``path``, itself a part or a bundle; None for a plain name."""
    if (path / CONFIG_NAME).is_file():
        return path
    if path.is_dir() or len(path.parts) > 1:
        return path / part
    return None
