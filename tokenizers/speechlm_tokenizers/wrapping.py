"""A part that holds another part: both in one folder, which needs nothing else.

The held part's kind and configuration are the holder's entry ``base``, its tensors lie beside
the holder's own as ``base.NAME``. One fingerprint therefore names both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError, FingerprintError, PluginError
from speechlm.parts import CONFIG_NAME, WEIGHTS_NAME, Part, load_part, part_kind, save_part
from speechlm.plugins import AUTO, load_tokenizer, load_vocoder, plugin
from speechlm.protocols import AudioTokenizer, Vocoder

BASE = "base"
_PREFIX = f"{BASE}."


@dataclass(frozen=True, kw_only=True, slots=True)
class HolderOptions:
    """Options of a vocoder that holds another one."""

    base: Path
    """A vocoder's folder, or a bundle's: one that was made for the tokenizer inside."""


def take_base(kind: str, options: Mapping[str, Any]) -> tuple[AudioTokenizer, dict[str, Any]]:
    """Load the tokenizer that ``options`` name as ``base``; give it and the other options.

    Raises:
        ConfigError: No base is named.
        PluginError: It is the name of a tokenizer that must be fitted first.
        CheckpointError: Its folder is missing, partial, or changed since it was saved.
    """
    others = dict(options)
    base = others.pop(BASE, None)
    if base is None:
        raise ConfigError(
            f"tokenizer {kind!r} goes on top of a fitted one: "
            "expected tokenizer.options.base=FOLDER, got none"
        )
    return load_tokenizer(str(base)), others


def base_vocoder(options: Mapping[str, Any]) -> Vocoder:
    """Load the vocoder that ``options`` name as ``base``.

    Raises:
        ConfigError: None is named, or an option is not known.
        CheckpointError: Its folder is missing, partial, or changed since it was saved.
    """
    return load_vocoder(build(HolderOptions, options, "vocoder.options").base)


def wrapped_vocoder(
    kind: str, tokenizer: AudioTokenizer, base: AudioTokenizer, vocoder: Vocoder | None
) -> Vocoder:
    """The vocoder for ``base``: the given one, or the one that ``base`` names.

    Args:
        kind: The vocoder that asks.
        tokenizer: Whose units that vocoder is to render.
        base: The tokenizer inside of ``tokenizer``.
        vocoder: One that was trained for ``base``; or for ``tokenizer`` by mistake.

    Raises:
        FingerprintError: ``vocoder`` was made for another tokenizer than ``base``.
        PluginError: ``base`` names none that needs no training.
    """
    if vocoder is None:
        return load_vocoder(AUTO, base)
    if vocoder.tokenizer_fingerprint != base.fingerprint:
        raise FingerprintError(
            part=f"the vocoder that {kind!r} is to hold",
            expected=vocoder.tokenizer_fingerprint,
            got=base.fingerprint,
            remedy=f"give one for the tokenizer inside of {tokenizer.fingerprint!r}",
        )
    return vocoder


def pack(
    base: AudioTokenizer | Vocoder, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and tensors of a holder, with those of what it holds.

    Raises:
        PluginError: The held part keeps files that a holder has no place for.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "part"
        base.save(folder)
        others = {entry.name for entry in folder.iterdir()} - {CONFIG_NAME, WEIGHTS_NAME}
        if others:
            raise PluginError(
                f"{base.fingerprint!r} cannot be held in another part: expected a folder of "
                f"{CONFIG_NAME} and {WEIGHTS_NAME} alone, got {', '.join(sorted(others))} besides"
            )
        saved = load_part(folder, part_kind(folder))
    return (
        {**config, BASE: {"kind": saved.kind, "config": saved.config}},
        {**tensors, **{_PREFIX + name: tensor for name, tensor in saved.tensors.items()}},
    )


def unpack(part: Part, group: str) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Undo :func:`pack`.

    Args:
        part: The holder, as it was read.
        group: Where the held part's kind is registered, :data:`speechlm.plugins.TOKENIZERS` or
            :data:`~speechlm.plugins.VOCODERS`.

    Returns:
        The held part, and the holder's own configuration and tensors.
    """
    config, tensors = dict(part.config), dict(part.tensors)
    held = config.pop(BASE)
    names = [name for name in tensors if name.startswith(_PREFIX)]
    inner = {name.removeprefix(_PREFIX): tensors.pop(name) for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "part"
        save_part(folder, held["kind"], held["config"], inner)
        return plugin(group, held["kind"]).load(folder), config, tensors
