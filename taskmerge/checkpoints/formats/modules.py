"""The modules of a sentence-transformers folder, those in a Router included, and the place of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.errors import CheckpointError, clipped

_LONGEST_NAME = 255
"""Bytes of a file's name, on the disks that there are."""
_ROUTERS = ("Router", "Asym")
_ROUTES = ("router_config.json", "config.json")
"""What lists a router's modules; older versions of sentence-transformers have it in the second file."""
_WITH_WEIGHTS = (
    "Transformer", "MLMTransformer", "CLIPModel", "StaticEmbedding", "SparseStaticEmbedding", "WordEmbeddings",
    "WordWeights", "Dense", "LayerNorm", "CNN", "LSTM", "WeightedLayerPooling", "SparseAutoEncoder",
)  # fmt: skip
_MOVE = "save the model again with sentence-transformers"


class Module(TypedDict, total=False):
    """One row of a sentence-transformers modules.json."""

    type: str


class Placed(Module):
    """A module of modules.json, with its path."""

    path: str


class Routes(TypedDict, total=False):
    """A router's own file. types: folder of a module in the router's folder -> its class. Other keys pass."""

    types: dict[str, str]
    structure: dict[str, list[str]]
    parameters: dict[str, Any]


def modules_of(folder: Path) -> list[Placed] | None:
    """The rows of a folder's modules.json; None without one. Raises CheckpointError when it makes no sense."""
    listing = folder / "modules.json"
    if not (listing.exists() or listing.is_symlink()):
        return None
    move = f"not a list of modules that each have a path: {_MOVE}"
    rows: list[Placed] = read_json(listing, list[Placed], move)
    if not rows:
        raise CheckpointError("lists no module", str(listing), move)
    return rows


def all_modules_of(folder: Path) -> list[Placed] | None:
    """As `modules_of`, and after each router the modules in it, with their paths from `folder`."""
    rows = modules_of(folder)
    return None if rows is None else list(_with_routed(rows, folder, folder / "modules.json", set()))


def routes_of(folder: Path, kind: str) -> Routes | None:
    """What a router's own file in `folder` says; None for a module of another class. kind: the module's class."""
    if class_of(kind) not in _ROUTERS:
        return None
    place = next((folder / name for name in _ROUTES if (folder / name).is_file()), folder / _ROUTES[0])
    check_link(place, folder)
    routes: Routes = read_json(place, Routes, f"not the table of a Router's modules: {_MOVE}")
    if not routes.get("types"):
        raise CheckpointError("lists no module of the Router", str(place), _MOVE)
    return routes


def class_of(kind: str) -> str:
    """The last part of a class's address in modules.json."""
    return kind.rpartition(".")[2]


def module_folders(folder: Path) -> dict[str, str]:
    """Part name -> folder inside `folder`: {"": ""}, or what a sentence-transformers modules.json lists.

    The first module is the transformer; its part is "" wherever it is. Of a router, the first of its modules that has
    the config of a transformer is the transformer, or else its first module.
    """
    rows = all_modules_of(folder)
    if rows is None:
        return {"": ""}
    places = [_checked(row["path"], folder, folder / "modules.json") for row in rows]
    main = _main(rows, places, folder)
    parts = {"": places[main]}
    for number, place in enumerate(places):
        if number != main and place and (folder / place).is_dir():
            parts[place] = place
    return parts


def _main(rows: list[Placed], places: list[str], folder: Path) -> int:
    """Which of all modules the transformer is."""
    if class_of(rows[0].get("type", "")) not in _ROUTERS:
        return 0
    first = PurePosixPath(places[0])
    routed = [number for number in range(1, len(rows)) if first in PurePosixPath(places[number]).parents]
    own = [number for number in routed if class_of(rows[number].get("type", "")) not in _ROUTERS] or routed
    return next((number for number in own if _is_transformer(folder / places[number])), own[0])


def modules_with_weights(folder: Path, modules: Mapping[str, str]) -> dict[str, str]:
    """Folder of a module -> its class, of all classes of sentence-transformers that have weights; without the first."""
    rows = all_modules_of(folder) or []
    kinds = {_checked(row["path"], folder, folder / "modules.json"): class_of(row.get("type", "")) for row in rows}
    return {place: kind for place, kind in kinds.items() if place != modules[""] and kind in _WITH_WEIGHTS}


def is_needed(folder: Path, modules: Mapping[str, str]) -> bool:
    """Return whether the first module must have weights: a transformer, or the only one. A bag of words has none."""
    return len(modules) == 1 or _is_transformer(folder)


def _is_transformer(folder: Path) -> bool:
    place = folder / "config.json"
    return place.is_file() and "model_type" in read_json(place, dict[str, Any])


def _with_routed(rows: list[Placed], folder: Path, listing: Path, seen: set[Path]) -> Iterator[Placed]:
    for row in rows:
        yield row
        place = folder / _inside(row["path"], listing)
        routes = routes_of(place, row.get("type", ""))
        if routes is None:
            continue
        if place.resolve() in seen:
            raise CheckpointError("is listed as a Router inside itself", str(place), _MOVE)
        names = {name: _inside(name, place) for name in routes["types"]}
        if not all(names.values()):
            raise CheckpointError("lists a module without a folder of its own", str(place), _MOVE)
        own = [
            Placed(type=kind, path=str(PurePosixPath(row["path"], names[name])))
            for name, kind in routes["types"].items()
        ]
        yield from _with_routed(own, folder, place, seen | {place.resolve()})


def _checked(text: str, folder: Path, listing: Path) -> str:
    inside = _inside(text, listing)
    check_link(folder / inside, folder)
    return inside


def _inside(text: str, listing: Path) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text:
        raise CheckpointError(
            f"lists a folder outside this one: {clipped(repr(text), 200)}",
            str(listing),
            "copy the folder into this one, and list it by its name",
        )
    if any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
        raise CheckpointError(
            f"lists a folder that cannot exist on any disk: {clipped(repr(text), 200)}",
            str(listing),
            _MOVE,
        )
    return "" if str(path) == "." else str(path)
