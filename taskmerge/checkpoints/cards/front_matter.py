"""The YAML header of a model card (README.md): read from any card, written for ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.links import check_link
from taskmerge.errors import TaskmergeError

NAME = "README.md"
LARGEST = 4 << 20
"""Bytes of a card that are read; cards of embedders hold the results of a hundred tasks."""
_MOST_OF_ONE_KEY = 1 << 14
_INSIDE, _DEEPEST = re.compile(r"[\[{]|- (?=- )|\? "), 50
"""Lists inside lists take the parser a time that grows with the square of their depth."""
_FENCE = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?P<head>.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"^(?P<key>[A-Za-z_][\w-]*)[ \t]*:", re.MULTILINE)


def read_card(folder: Path) -> str:
    """Return the text of a folder's card; "" where there is none that can be read. A link may not leave the folder."""
    path = folder / NAME
    try:
        if not path.is_file():
            return ""
        check_link(path, folder)
        with path.open("rb") as file:
            return file.read(LARGEST).decode("utf-8", errors="replace")
    except (OSError, TaskmergeError):
        return ""


def split(card: str) -> tuple[str, str]:
    """Return (the YAML between the fences, the text after it); ("", the card) where it begins with none."""
    found = _FENCE.match(card)
    return (found["head"], card[found.end() :]) if found else ("", card.removeprefix("\ufeff"))


def fields(card: str, wanted: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a card that are wanted: texts, lists and tables of texts, nothing built from tags.

    Every scalar is text, so that the language `no` is not false. Only the wanted keys' own lines are parsed.
    """
    import yaml

    head, _ = split(card)
    starts = [(match.start(), match["key"]) for match in _KEY.finditer(head)]
    ends = [*(start for start, _ in starts[1:]), len(head)]
    names, found = set(wanted), {}
    for (start, key), end in zip(starts, ends):  # noqa: B905 (one end more where there is no key)
        text = head[start:end]
        if key not in names or len(text) > _MOST_OF_ONE_KEY or len(_INSIDE.findall(text)) > _DEEPEST:
            continue
        try:
            table = yaml.load(text, Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError, ValueError):
            continue
        if isinstance(table, dict) and key in table:
            found[key] = table[key]
    return found


def texts(value: Any) -> list[str]:
    """Return what a field that may hold one text or several holds."""
    values = value if isinstance(value, list) else [value]
    return [one.strip() for one in values if isinstance(one, str) and one.strip()]


def written(front: Mapping[str, Any]) -> str:
    """Return the YAML of a card, its fences included. Every value is written as JSON, which YAML reads as it is."""
    rows = (f"{key}: {_json(value)}" for key, value in front.items() if value not in (None, [], ""))
    return "\n".join(("---", *rows, "---"))


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
