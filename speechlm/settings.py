"""Dataclasses made of plain values, with every key and type checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from speechlm.errors import ConfigError

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Make a configuration dataclass of plain values, checking every key and type."""
    from pydantic import TypeAdapter, ValidationError

    values = _drop_empty_sections(kind, values)
    _check_keys(kind, values, where)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([*([where] if where else []), *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise ConfigError(message) from error
        raise ConfigError(
            f"{key}: {message[:1].lower()}{message[1:]}, got {first['input']!r}"
        ) from error


def _drop_empty_sections(kind: type, values: Any) -> Any:
    """Read ``train:`` with nothing below it as all defaults."""
    if not isinstance(values, Mapping):
        return values
    hints = get_type_hints(kind)
    return {
        key: value
        for key, value in values.items()
        if not (value is None and key in hints and is_dataclass(hints[key]))
    }


def _check_keys(kind: type, values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where or 'the configuration'}: expected keys and values, got {values!r}"
        )
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key, value in values.items():
        full = f"{where}.{key}" if where else str(key)
        if key not in known:
            near = _nearest_key(kind, str(key))
            meant = f"{where}.{near}" if where else near
            hint = f"did you mean {meant!r}? " if near else ""
            raise ConfigError(f"unknown key {full!r}; {hint}known: {', '.join(known)}")
        if is_dataclass(hints[key]):
            _check_keys(hints[key], value, full)


def _nearest_key(kind: type, key: str) -> str | None:
    """The key of ``kind``, or of one of its sections, that ``key`` looks most like."""
    known = {f.name: f.name for f in fields(kind)}
    if near := difflib.get_close_matches(key, known, n=1):
        return near[0]
    for section, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            known.update((f.name, f"{section}.{f.name}") for f in fields(hint))
    near = difflib.get_close_matches(key, known, n=1)
    return known[near[0]] if near else None


def at_least(least: int, name: str, value: int) -> None:
    """Refuse a smaller number than ``least`` with a ConfigError."""
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")
