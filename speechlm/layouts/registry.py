"""Layouts by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechlm.layouts.grid import Layout


def build_layout(name: str, options: Mapping[str, Any], num_codebooks: int) -> Layout:
    """The layout ``name`` for a tokenizer of ``num_codebooks``.

    Raises:
        ConfigError: An unknown name or option, with the nearest known one.
        InputError: Options that contradict each other or the number of codebooks.
    """
    raise NotImplementedError


def layout_from_dict(values: Mapping[str, Any]) -> Layout:
    """Undo :meth:`~speechlm.layouts.grid.Layout.to_dict`."""
    return build_layout(values["name"], values["options"], int(values["num_codebooks"]))
