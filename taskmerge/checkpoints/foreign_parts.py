"""A checkpoint while its parts are being told: what names say of them, the towers known so far, what was placed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskmerge.checkpoints.component_names import Layout, Placed, joined
from taskmerge.checkpoints.structure import (
    HasHeader,
    Path,
    Stack,
    common,
    inside_of,
    outside_layers,
    raw_input,
    under,
)


@dataclass
class Tower:
    """One tower. root: path of all that it holds.  widths: of what its layers put out.  modality: None where nothing
    tells it.  named: whether a word of its tensors' names does.  stacks: its layers."""

    root: Path
    widths: frozenset[int]
    modality: str | None
    named: bool
    stacks: tuple[Stack, ...] = ()

    @property
    def component(self) -> str:
        """The name of the component of its tensors."""
        return f"{self.modality}_encoder" if self.modality else "encoder"


@dataclass(frozen=True)
class Inferred:
    """A module placed by its shapes. root: its path.  component: where it belongs.  reason: what tells so."""

    root: Path
    component: str
    reason: str


class Parts:
    """One checkpoint. placed: what names say.  towers, components, found: what is known and placed so far."""

    def __init__(
        self,
        tensors: Mapping[str, HasHeader],
        placed: Mapping[str, Placed],
        layout: Layout,
        config: Mapping[str, Any],
        backbone: Stack,
    ) -> None:
        self.tensors, self.layout, self.config, self.backbone = tensors, layout, config, backbone
        self.placed = dict(placed)
        self.towers: list[Tower] = []
        self.components: dict[str, str] = {}
        self.inferred: list[Inferred] = []

    @property
    def hidden(self) -> int:
        """Width of the language model."""
        return self.backbone.width

    def under(self, root: Path) -> dict[str, HasHeader]:
        """Return the tensors below a path."""
        return under(self.tensors, root)

    def loose(self, root: Path) -> dict[str, HasHeader]:
        """Return the tensors below a path that are outside layers."""
        return outside_layers(self.under(root), self.layout.stacks)

    def raw(self, root: Path) -> str | None:
        """Return the kind of raw input that is taken below a path; see `structure.raw_input`."""
        found = raw_input(self.loose(root))
        for stack in self.layout.stacks:
            if found is None and stack.layers == 1 and stack.path[: len(root)] == root:
                found = raw_input(inside_of(stack, self.tensors))
        return found

    def at(self, path: Path) -> Placed:
        """Return the component that names give to the tensors below a path."""
        return next(self.placed[name] for name in self.under(path))

    def root(self, path: Path) -> Path:
        """Return the outermost module that contains this one and no layer of the language model."""
        return path[: common(path, self.backbone.path) + 1]

    def claim(self, root: Path, component: str, reason: str) -> None:
        """Place all below a path, but what its name places elsewhere."""
        self.inferred.append(Inferred(root, component, reason))
        tower = component.endswith("encoder")
        for name in self.under(root):
            at = self.placed[name]
            elsewhere = at.sure and at.component.endswith(("_encoder", "projector", "_decoder"))
            if tower and elsewhere:
                continue
            if tower and at.root and "projector" in at.component:  # it does not say of what: of this tower
                self.components[name] = joined(component.removesuffix("encoder").rstrip("_") or None)
            else:
                self.components[name] = component

    def rename(self, root: Path, component: str, reason: str) -> None:
        """Place all below a path, whatever its name says."""
        self.inferred.append(Inferred(root, component, reason))
        for name in self.under(root):
            self.placed[name] = Placed(component, True, root)
            self.components[name] = component


def widths(found: Iterable[Stack]) -> frozenset[int]:
    """Return the widths of stacks of layers."""
    return frozenset(stack.width for stack in found)


def of_text(root: Path) -> bool:
    """Return whether a word of a path is "text"."""
    return any("text" in part.split("_") for part in root)
