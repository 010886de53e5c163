"""A recipe back to plain values and YAML, for the provenance file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml


def plain(section: Any) -> dict[str, Any]:
    """Return a section as plain values without defaults; a method's parameters are next to it, as in a recipe."""
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        if entry.metadata.get("filled") == "options" and isinstance(value, Mapping):
            values.update({key: _value(option) for key, option in value.items()})
        elif "filled" not in entry.metadata and not _is_default(entry, value):
            values[entry.name] = _value(value)
    return values


def _is_default(entry: dataclasses.Field[Any], value: Any) -> bool:
    if entry.default_factory is not dataclasses.MISSING:
        return bool(value == entry.default_factory())
    return entry.default is not dataclasses.MISSING and bool(value == entry.default)


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _value(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(entry) for entry in value]
    return value


def without_paths(values: Any) -> Any:
    """Plain values with text in place of each path."""
    if isinstance(values, Mapping):
        return {key: without_paths(entry) for key, entry in values.items()}
    if isinstance(values, list):
        return [without_paths(entry) for entry in values]
    return str(values) if isinstance(values, PurePath) else values


def dump(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, keys in their order."""
    return str(yaml.safe_dump(_value(values), sort_keys=False, allow_unicode=True))
