"""A recipe written to another folder: what its relative paths name stays the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskmerge.recipes.recipe import Recipe, from_dict
from taskmerge.words.places import is_pattern

_DATA = ("drift", "recover", "rehearse", "evaluate", "specialize", "search")
"""Sections whose texts may name files of data."""


def moved(recipe: Recipe, folder: Path) -> Recipe:
    """Return the same recipe for another `folder`. Hub ids, names and absolute paths are unchanged."""
    table = recipe.to_dict()

    def here(text: Any) -> Any:
        return _from(text, recipe.folder, folder)

    for key in ("base", "base_adapter", "embedder"):
        if key in table:
            table[key] = here(table[key])
    for name, row in table["specialists"].items():
        said = {"model": row} if isinstance(row, str) else dict(row)
        said |= {key: here(said[key]) for key in ("model", "adapter", "base") if key in said}
        if "also" in said:
            said["also"] = [here(one) for one in said["also"]]
        table["specialists"][name] = said
    for section in (table.get("merge", {}), *table.get("merge", {}).get("rules", [])):
        if "method" in section:
            section["method"] = here(section["method"])
    if "path" in table.get("output", {}):
        table["output"]["path"] = _relative(table["output"]["path"], recipe.folder, folder)
    for key in _DATA:
        if key in table:
            table[key] = _every(table[key], here)
    return replace(from_dict(table, folder), folder=folder)


def _every(value: Any, here: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _every(entry, here) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_every(entry, here) for entry in value]
    return here(value)


def _from(text: Any, old: Path, new: Path) -> Any:
    """A text that names something in `old`, as it is named in `new`; any other as it is."""
    if not isinstance(text, str) or Path(text).is_absolute() or text.startswith("~"):
        return text
    file, colon, name = text.partition(".py:")
    if colon and (old / f"{file}.py").exists():
        return f"{_relative(f'{file}.py', old, new)}:{name}"
    there = old / (Path(text).parent if is_pattern(text) else Path(text))
    try:
        found = there.exists() and (not is_pattern(text) or there != old)
    except (OSError, ValueError):
        return text
    return _relative(text, old, new) if found else text


def _relative(text: str, old: Path, new: Path) -> str:
    return text if Path(text).is_absolute() else os.path.relpath(old / text, new)
