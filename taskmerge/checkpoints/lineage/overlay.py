"""A model with some tensors from another file in their place: a projector saved alone, what LoRA did not train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.components import HEAD, component_map
from taskmerge.checkpoints.formats.reading import StoredStateDict, open_stored
from taskmerge.checkpoints.lineage.names import match_names
from taskmerge.checkpoints.output.layout import natural
from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, MergeError, few

_PEFT = "base_model.model."


def overlaid(model: StateDict, also: Sequence[str | Path], relative_to: Path | None = None) -> StateDict:
    """Return `model` with the tensors of each of the files, folders or hub ids `also` in place of its own.

    A tensor of a component that the model lacks is added. Raises CheckpointError as `open_stored`, MergeError where it
    cannot be told which tensors are meant.
    """
    for one in also:
        model = Overlaid(model, open_stored(one, relative_to))
    return model


class Overlaid(StateDict):
    """A `StateDict` of a model with some tensors from a file instead."""

    def __init__(self, model: StateDict, over: StoredStateDict) -> None:
        if not over.tensors:
            raise CheckpointError(
                "contains no tensors: it changes nothing", over.label, "leave it out, or save it again"
            )
        self.model, self.over = model, over
        self.label = f"{model.label} + {over.label}"
        self._own, how = _places(model, over, self.label)
        taken = sum(name in model.tensors for name in self._own)
        new = len(self._own) - taken
        said = f"{over.label}: {taken} tensors replace the model's" + (f", {new} new" if new else "")
        files = {**model.beside.files, **{f"also/{name}": file for name, file in over.beside.files.items()}}
        self.beside = replace(
            model.beside,
            files=files if model.beside.files else {},
            notes=(*model.beside.notes, *over.beside.notes, f"{said}{how} ({few(self._own, 2)})"),
        )
        self.tensors = {
            **model.tensors,
            **{name: replace(over.tensors[stored], name=name) for name, stored in self._own.items()},
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        stored = self._own.get(name)
        return self.model.read(name, start, stop) if stored is None else self.over.read(stored, start, stop)

    def view(self, name: str) -> np.ndarray | None:
        """See `StateDict.view`."""
        stored = self._own.get(name)
        return self.model.view(name) if stored is None else self.over.view(stored)

    def release(self, name: str, start: int, stop: int) -> None:
        """See `StateDict.release`."""
        if name not in self._own:
            self.model.release(name, start, stop)

    def delta(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.delta`."""
        return None if name in self._own else self.model.delta(name)

    def unrounded(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.unrounded`."""
        return None if name in self._own else self.model.unrounded(name)

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        return name if name in self._own else self.model.stored_name(name)


def _places(model: StateDict, over: StateDict, label: str) -> tuple[dict[str, str], str]:
    """The model's name, or a new one -> the file's; and how they were found, where that is to be said."""
    peft = all(name.startswith(_PEFT) for name in over.tensors)
    stored = {name.removeprefix(_PEFT) if peft else name: name for name in over.tensors}
    stored = {name.replace(".base_layer.", ".").replace(".modules_to_save.", "."): own for name, own in stored.items()}
    outline = Outline(label, {name: replace(over.tensors[own], name=name) for name, own in stored.items()},
                      Beside(config=model.config))  # fmt: skip
    names, how = _below_one_module(model, outline), ""
    if names is None:
        names, how = _by_order(model, outline), ", paired by their order and shapes"
    if names is None:
        new = _brings_components(model, outline)
        names = {} if new else {theirs: ours for ours, theirs in match_names(model, outline).pairs.items()}
        how = ""
    placed = {names.get(name, name): own for name, own in stored.items()}
    for ours, own in placed.items():
        if ours in model.tensors and model.tensors[ours].shape != over.tensors[own].shape:
            raise MergeError(
                f"{own!r} has shape {list(over.tensors[own].shape)}, the model's {ours!r} "
                f"has {list(model.tensors[ours].shape)}",
                over.label,
                "use a file that belongs to this model",
            )
    return placed, how


def _brings_components(model: StateDict, outline: StateDict) -> bool:
    """Whether all of it belongs to components that the model lacks: a tower or projector of another modality."""
    parts = component_map({**outline.tensors, **model.tensors}, model.config)
    own = {parts.home(name) for name in model.tensors}
    return not any(name in model.tensors or parts.home(name) in own for name in outline.tensors)


def _below_one_module(model: StateDict, outline: StateDict) -> dict[str, str] | None:
    """The names put below the one module that has them all, in equal shapes; None when no or several have."""
    first = next(iter(outline.tensors))
    befores = {""} | {name[: -len(first)] for name in model.tensors if name.endswith(f".{first}")}
    found = [
        before
        for before in befores
        if all(_shape(model, before + name) == info.shape for name, info in outline.tensors.items())
    ]
    return {name: found[0] + name for name in outline.tensors} if len(found) == 1 else None


def _shape(model: StateDict, name: str) -> tuple[int, ...] | None:
    return model.tensors[name].shape if name in model.tensors else None


def _by_order(model: StateDict, outline: StateDict) -> dict[str, str] | None:
    """Layers paired one after another with those of the one projector that has as many, of equal shapes: trainers
    number the layers (`mm_projector.0`, `.2`) that transformers names (`linear_1`, `linear_2`)."""
    parts = component_map(model.tensors, model.config)
    theirs = _layers(outline.tensors)
    found = []
    for component in sorted({part for part in parts.values() if part.endswith("projector")}):
        ours = _layers({name: model.tensors[name] for name in parts.names(component)})
        if [shapes for _, shapes in ours] == [shapes for _, shapes in theirs]:
            found.append(ours)
    if len(found) != 1 or any(part == HEAD for part in component_map(outline.tensors).values()):
        return None
    return {
        _join(other, leaf): _join(own, leaf)
        for (own, shapes), (other, _) in zip(found[0], theirs, strict=True)
        for leaf in shapes
    }


def _layers(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, dict[str, tuple[int, ...]]]]:
    """(module, its tensors' shapes by leaf), in natural order."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in sorted(tensors, key=natural):
        module, _, leaf = name.rpartition(".")
        found.setdefault(module, {})[leaf] = tensors[name].shape
    return list(found.items())


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


@dataclass
class Outline(StateDict):
    """Headers without values: enough to match names."""

    label: str
    tensors: Mapping[str, TensorInfo]
    beside: Beside

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Raise CheckpointError: an outline has headers only."""
        raise CheckpointError(f"{name!r} has no values: only its header was read", self.label, "open the file")
