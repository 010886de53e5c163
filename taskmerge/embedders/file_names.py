"""Names of live tensors in the file that their model was loaded from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from taskmerge.checkpoints.formats.modules import modules_of, routes_of
from taskmerge.checkpoints.formats.reading import read_config
from taskmerge.checkpoints.lineage.names import match_names
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.checkpoints.views import ViewedStateDict, whole
from taskmerge.errors import MergeError

if TYPE_CHECKING:
    from torch import nn


def names_in_file(network: Any, stored: StateDict | None) -> dict[str, str]:
    """Return the network's names -> the file's."""
    if stored is None:
        return {}
    try:
        pairs = match_names(stored, MemoryStateDict.of_module(network)).pairs
    except MergeError:  # packed otherwise than in the file: its own names are all there is
        return {}
    return {theirs: ours for ours, theirs in pairs.items()}


class Part(NamedTuple):
    """A module of a sentence-transformers model. folder: its own in the model's folder; "" for the transformer."""

    module: nn.Module
    folder: str

    @property
    def network(self) -> Any:
        """What of it a library other than sentence-transformers would save: the transformer in it, or itself."""
        return getattr(self.module, "auto_model", self.module)

    def in_file(self, stored: StateDict | None) -> dict[str, str]:
        """The network's names -> those in the module's own file. stored: the model that it was loaded from."""
        return {} if stored is None else names_in_file(self.network, _part_of(stored, self.folder))

    def tensors(self, in_file: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
        """Its live tensors under the names that they have in the model."""
        network = self.network
        prefix = next((f"{name}." for name, part in self.module.named_modules() if part is network and name), "")
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            inner = name.removeprefix(prefix)
            inner = in_file.get(inner, inner)
            yield f"{self.folder}/{inner}" if self.folder else inner, tensor


def parts_of(model: Sequence[nn.Module], beside: Beside) -> list[Part]:
    """All modules with their folders, those in a router included, the transformer first.

    model: a SentenceTransformer. beside: of what it was loaded from; where that has no folder, the folders are named as
    sentence-transformers names them.
    """
    rows = modules_of(beside.folder) if beside.folder is not None else None
    places = [row["path"] for row in rows] if rows is not None and len(rows) == len(model) else None
    found: list[Part] = []
    for number, module in enumerate(model):
        own = f"{number}_{type(module).__name__}" if number else ""
        found += _parts(module, places[number] if places is not None else own, beside.folder)
    first = _transformer(found, model[0], beside)
    return [Part(found[first].module, ""), *(part for number, part in enumerate(found) if number != first)]


def _transformer(found: Sequence[Part], first: nn.Module, beside: Beside) -> int:
    """Which of all parts the transformer is: as `module_folders` chooses it."""
    if beside.folder is not None:
        place = beside.module_folders.get("", "")
        return next((number for number, part in enumerate(found) if part.folder == place), 0)
    own = [number for number, part in enumerate(found) if any(part.module is one for one in first.modules())]
    return next((number for number in own if found[number].network is not found[number].module), 0)


def _parts(module: nn.Module, place: str, folder: Path | None) -> Iterator[Part]:
    routes: Any = getattr(module, "sub_modules", None)
    if type(module).__name__ != "Router" or routes is None:
        yield Part(module, "" if place == "." else place)
        return
    named = None if folder is None else routes_of(folder / place, "Router")
    structure = {} if named is None else named.get("structure", {})
    seen: list[nn.Module] = []
    for route, modules in routes.items():
        known = structure.get(route, [])
        for number, one in enumerate(modules):
            if not any(one is other for other in seen):
                seen.append(one)
                own = f"{route}_{number}_{type(one).__name__}"
                inside = known[number] if len(known) == len(modules) else own
                yield from _parts(one, str(PurePosixPath(place, inside)), folder)


def _part_of(stored: StateDict, folder: str) -> StateDict:
    """The tensors of one module, under their names in its own file."""
    modules = stored.beside.module_folders
    homes = {name: name.rpartition("/")[0] for name in stored.tensors}
    names = [name for name, home in homes.items() if (home if home in modules else "") == folder]
    prefix = f"{folder}/" if folder else ""
    views = {name.removeprefix(prefix): whole(stored.tensors[name], name.removeprefix(prefix)) for name in names}
    found = ViewedStateDict(stored, views)
    place = stored.beside.folder
    if folder and place is not None:
        found.beside = replace(found.beside, config=read_config(place / folder / "config.json"))
    return found
