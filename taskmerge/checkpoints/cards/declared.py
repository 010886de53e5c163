"""The statements of a model about itself: id on the hub, licence, languages and data, from its card, config and place.

Nothing is guessed: the origin of each id is recorded, and information that a model does not state is absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypedDict

from taskmerge.checkpoints.cards.front_matter import fields, read_card, texts
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.errors import TaskmergeError
from taskmerge.words.places import repository_of

How = Literal["hub", "cache", "clone", "card", "config"]
"""The origin of an id: it was read from the hub; the folder is in the hub's cache, or was cloned from there; the card,
or the config, of a local folder names the model that it was made from."""

_FIELDS = ("license", "license_name", "license_link", "language", "datasets", "tags", "base_model")
_CACHED = re.compile(r"models--(?P<id>[A-Za-z0-9][\w.-]*?(?:--[A-Za-z0-9][\w.-]*)?)", re.ASCII)
_CLONED = re.compile(
    r"url\s*=\s*(?:https://|git@)(?:\w+(?::[^@\s]*)?@)?(?:huggingface\.co|hf\.co)[/:]([\w.-]+/[\w.-]+)"
)
_RUN = re.compile(r"(checkpoint|step|epoch|run|iter)[-_]?\d*|\d+", re.IGNORECASE)
_PLACES = {"output", "outputs", "checkpoints", "ckpt", "ckpts", "results", "runs", "saves", "tmp", "data", "content"}
"""First parts of what is a relative path rather than owner/name."""


class Declared(TypedDict, total=False):
    """One model's words about itself. models: ids on the hub, of itself or of what it was made from (see `How`)."""

    models: list[str]
    how: How
    license: str
    license_name: str
    license_link: str
    language: list[str]
    datasets: list[str]
    tags: list[str]


class _Source(TypedDict, total=False):
    declared: list[Declared]


class _Record(TypedDict):
    inputs: dict[str, _Source]


def declared(folders: Iterable[Path], named: str | None = None) -> list[Declared]:
    """Return what the models in these folders say, each once.

    Args:
        folders: of one input's files: a model's folder, its adapter's too.
        named: the hub id that the first of them was asked for by; None where it is a folder of this disk.
    """
    found: list[Declared] = []
    places = list(dict.fromkeys(folders))
    for place in places:
        inside = any(place != other and place.is_relative_to(other) for other in places)
        for row in [] if inside else _of_folder(place, named if place == places[0] else None):
            if row not in found:
                found.append(row)
    return found


def _of_folder(folder: Path, named: str | None) -> list[Declared]:
    said = fields(read_card(folder), _FIELDS)
    row: Declared = {}
    if license_ids := texts(said.get("license")):
        row["license"] = ", ".join(one.lower() for one in license_ids)
    for key in ("license_name", "license_link"):
        if value := texts(said.get(key)):
            row[key] = value[0]  # type: ignore[literal-required]
    for key in ("language", "datasets", "tags"):
        if values := texts(said.get(key)):
            row[key] = list(dict.fromkeys(values))  # type: ignore[literal-required]
    own = (named, "hub") if named else _own_id(folder)
    if own is not None:
        return [{**row, "models": [own[0]], "how": own[1]}]  # type: ignore[typeddict-item]
    made_of = _made_of(folder)
    if made_of and "license" not in row:  # a folder of ours, whose inputs have said it all
        return made_of
    parents, how = _parents(folder, texts(said.get("base_model")))
    if not parents and made_of:
        parents = list(dict.fromkeys(model for inner in made_of for model in inner.get("models", ())))
        how = "card"
    return [{**row, "models": parents, "how": how} if parents else row]


def _own_id(folder: Path) -> tuple[str, How] | None:
    """The id that a folder's place says it was fetched by."""
    for parent in (folder, *folder.parents):
        if parent.name == "snapshots" and (match := _CACHED.fullmatch(parent.parent.name)):
            return match["id"].replace("--", "/"), "cache"
    try:
        git = folder / ".git" / "config"
        text = git.read_text("utf-8", errors="replace") if git.is_file() and git.stat().st_size < 1 << 16 else ""
    except OSError:
        return None
    cloned = _CLONED.search(text)
    return (cloned[1].removesuffix(".git"), "clone") if cloned else None


def _made_of(folder: Path) -> list[Declared]:
    """What the record of a folder made here holds of the models that it was made from."""
    path = folder / "taskmerge.json"
    try:
        record: _Record | None = read_json(path, _Record) if path.is_file() else None
    except (TaskmergeError, OSError):
        return []
    rows = [row for source in record["inputs"].values() for row in source.get("declared", ())] if record else []
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def _parents(folder: Path, in_card: list[str]) -> tuple[list[str], How]:
    """The models that a local folder says it was made from: in its card, else in its config."""
    if named := [text for text in in_card if is_id(text, folder)]:
        return list(dict.fromkeys(named)), "card"
    for name, key in (("config.json", "_name_or_path"), ("adapter_config.json", "base_model_name_or_path")):
        try:
            table: dict[str, Any] = read_json(folder / name, dict[str, Any]) if (folder / name).is_file() else {}
        except (TaskmergeError, OSError):
            continue
        text = table.get(key)
        if isinstance(text, str) and is_id(text, folder):
            return [text], "config"
    return [], "config"


def is_id(text: str, folder: Path | None = None) -> bool:
    """Return whether a text is owner/name on the hub, and no relative path that looks like it.

    folder: where it was found: a file or folder of that name there, or in the current folder, is meant instead.
    """
    found = repository_of(text)
    if found is None or found[1] is not None or "--" in text or ".." in text:
        return False
    owner, _, name = text.partition("/")
    if owner.lower() in _PLACES or _RUN.fullmatch(name) or len(text) > 96:
        return False
    near = [Path(), *([folder, *list(folder.parents)[:3]] if folder is not None else [])]
    return not any((place / text).exists() for place in near)
