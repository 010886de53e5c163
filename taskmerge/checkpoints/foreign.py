"""Modules that somebody else's class brings, told by what they do: towers by their layers and what they take,
projectors by the widths they lead between. Only tensors that no word of their names places are placed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.checkpoints.component_names import (
    BACKBONE,
    HEAD,
    STRUCTURE,
    TAIL,
    Layout,
    Placed,
    is_token_table,
    joined,
)
from taskmerge.checkpoints.config_sections import sections, width
from taskmerge.checkpoints.structure import (
    HasHeader,
    Leading,
    Path,
    Stack,
    common,
    outside_layers,
    raw_input,
    under,
)
from taskmerge.words import modalities


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
        """What its tensors' component is called."""
        return f"{self.modality}_encoder" if self.modality else "encoder"


@dataclass(frozen=True)
class Found:
    """A module placed by its shapes. root: its path.  component: where it belongs.  reason: what tells so."""

    root: Path
    component: str
    reason: str


class Foreign:
    """The modules of one checkpoint that only their shapes tell. found: in the order in which they were placed."""

    def __init__(
        self,
        tensors: Mapping[str, HasHeader],
        placed: Mapping[str, Placed],
        layout: Layout,
        config: Mapping[str, Any],
        backbone: Stack,
    ) -> None:
        self._tensors, self._placed, self._config, self._backbone = tensors, placed, config, backbone
        self._layout = layout
        self.components: dict[str, str] = {}
        self.found: list[Found] = []
        self.towers = self._named_towers()
        self._find_towers()
        self._units = self._loose_units()
        self._place_inside_towers(named=False)
        self._place_loose()
        self._place_inside_towers(named=True)

    # ---------------------------------------------------------------------------------------------------- towers

    def _named_towers(self) -> list[Tower]:
        towers: dict[Path, list[Stack]] = {}
        for stack in self._layout.stacks:
            at = self._at(stack.path)
            if at.sure and at.component.endswith("_encoder"):
                towers.setdefault(at.root or stack.path, []).append(stack)
        return [
            Tower(root, _widths(found), self._at(found[0].path).component.removesuffix("_encoder"), True, tuple(found))
            for root, found in towers.items()
        ]

    def _find_towers(self) -> None:
        roots: dict[Path, list[Stack]] = {}
        for stack in self._layout.stacks:
            if stack is not self._backbone and not self._at(stack.path).sure:
                root = self._root(stack.path)
                if self._is_foreign(stack, root):
                    roots.setdefault(root, []).append(stack)
        for root, found in roots.items():
            for own_root, own in self._split(root, found):
                self._add_tower(own_root, own)

    def _split(self, root: Path, found: Sequence[Stack]) -> list[tuple[Path, list[Stack]]]:
        """One tower, or one for each module below the root when these are of different modalities."""
        below: dict[Path, list[Stack]] = {}
        for stack in found:
            below.setdefault(stack.path[: len(root) + 1], []).append(stack)
        said = {path: self._modality(path, own)[0] for path, own in below.items()}
        return list(below.items()) if len(set(said.values()) - {None}) > 1 else [(root, list(found))]

    def _add_tower(self, root: Path, found: Sequence[Stack]) -> None:
        modality, reason = self._modality(root, found)
        tower = Tower(root, _widths(found), modality, False, tuple(found))
        self.towers.append(tower)
        if found:
            stack = max(found, key=lambda one: one.entries)
            reason = f"{stack.layers} layers of width {stack.width}; {reason}"
        self._claim(root, tower.component, reason)

    def _is_foreign(self, stack: Stack, root: Path) -> bool:
        """Whether layers are no part of the language model's: they take raw input, bear the name of an encoder, or
        have another width or other insides."""
        if _of_text(root) or any(
            self._placed[name].component == HEAD and self._placed[name].sure
            for name in under(self._tensors, stack.path)
        ):
            return False
        if self._raw(root) is not None or any(modalities.tower_of_encoder(part) for part in stack.path):
            return True
        if (
            root[-1] in STRUCTURE
            and self._layout.backbone is not None
            and self._backbone.path[len(root) - 1] in STRUCTURE
        ):
            return False  # the other half of an encoder-decoder
        alike = len(stack.inner & self._backbone.inner) > len(stack.inner) / 2
        return stack.width != self._backbone.width or not alike

    def _raw(self, root: Path) -> str | None:
        return raw_input(outside_layers(under(self._tensors, root), self._layout.stacks))

    def _modality(self, root: Path, found: Sequence[Stack]) -> tuple[str | None, str]:
        """Of a tower, and what tells it."""
        raw = self._raw(root)
        if raw is not None:
            modality, _, said = raw.partition(": ")
            return _tower_named(modality), said
        for part in (*root, *(part for stack in found for part in stack.path)):
            if (named := modalities.tower_of_encoder(part)) is not None:
                return named, f"{part} is the name of such an encoder"
        for path, section in sections(self._config):
            said_by = modalities.tower_in(path.replace("-", "_").replace(".", "_").split("_"))
            if said_by is not None and width(section) in _widths(found):
                return said_by, f"{path} of the config is of this width"
        taken = {tower.modality for tower in self.towers}
        sole = {
            said_by
            for path, _ in sections(self._config)
            if (said_by := modalities.tower_in(path.replace("-", "_").replace(".", "_").split("_"))) is not None
        } - taken
        if len(sole) == 1:
            modality = sole.pop()
            return modality, f"the config speaks of {modality}, and no other part is of it"
        return None, "nothing tells its modality"

    # ------------------------------------------------------------------------------------------------ projectors

    def _loose_units(self) -> dict[Path, str]:
        """Modules that are no tower's, and where their names place them: those that no word places, projectors that
        do not say of what, and what is named after a modality and has no layers."""
        claimed = tuple(".".join(tower.root) + "." for tower in self.towers if not tower.named)
        units: dict[Path, str] = {}
        for name, at in self._placed.items():
            if name in self.components or "/" in name or (claimed and name.startswith(claimed)):
                continue
            parts = tuple(name.split("."))
            if (at.root and not at.sure) or (
                at.component.endswith("_encoder")
                and at.root
                and not any(stack.path[: len(at.root)] == at.root for stack in self._layout.stacks)
            ):
                units.setdefault(at.root, at.component)
            elif self._is_loose(name, at) and parts[: len(self._backbone.path)] != self._backbone.path:
                units.setdefault(self._root(parts), at.component)
        return units

    def _is_loose(self, name: str, at: Placed) -> bool:
        return not at.sure and at.component in (BACKBONE, HEAD) and not is_token_table(name)

    def _place_inside_towers(self, named: bool) -> None:
        """What stands in a tower and leads out of it; in one that names tell, only where no projector is known."""
        hidden = self._backbone.width
        for tower in [tower for tower in self.towers if tower.named is named]:
            if named and self._has_projector(tower):
                continue
            for root, own in self._units_of(tower).items():
                leads, tail = Leading.of(own), TAIL.fullmatch(root[-1]) is not None
                out = leads.leads_to(hidden) and raw_input(own) is None and self._feeds(tower, leads)
                if out and (tail or hidden not in tower.widths):
                    self._claim(root, joined(tower.modality), self._from(tower))

    def _units_of(self, tower: Tower) -> dict[Path, dict[str, HasHeader]]:
        """The modules of a tower outside its layers, each from where its path leaves theirs."""
        units: dict[Path, dict[str, HasHeader]] = {}
        for name, info in outside_layers(under(self._tensors, tower.root), tower.stacks).items():
            parts = tuple(name.split("."))
            deepest = max((common(parts, stack.path) for stack in tower.stacks), default=len(tower.root))
            units.setdefault(parts[: max(deepest, len(tower.root)) + 1], {})[name] = info
        return units

    def _place_loose(self) -> None:
        hidden = self._backbone.width
        waiting = dict(self._units)
        # what names its modality first: it tells which towers wait for one that does not
        for root, said in sorted(self._units.items(), key=lambda unit: not unit[1].endswith("_encoder")):
            own = under(self._tensors, root)
            leads = Leading.of(own)
            if said == HEAD and raw_input(own) is not None:
                self._add_tower(root, ())
                del waiting[root]
            elif self._is_projector(root, said, leads):
                self._place_projector(root, said, leads)
                del waiting[root]
        for root, said in list(waiting.items()):
            leads = Leading.of(under(self._tensors, root))
            if next_one := self._leads_into_projector(leads, said):
                self._claim(root, next_one, "leads into it")
            elif not leads.sides and said != BACKBONE and self.towers:
                self._place_vectors(root, said, leads.sizes, hidden)

    def _is_projector(self, root: Path, said: str, leads: Leading) -> bool:
        hidden = self._backbone.width
        if "projector" in said:
            return bool(leads.sides)
        if not leads.leads_to(hidden) or raw_input(under(self._tensors, root)) is not None:
            return False
        fed = [tower for tower in self.towers if self._feeds(tower, leads)]
        elsewhere = any(hidden not in tower.widths for tower in fed)
        if said == BACKBONE:  # inside the language model's own module: only what a tower waits for
            lonely = [tower for tower in fed if not self._has_projector(tower)]
            from_outside = any(hidden not in tower.widths for tower in lonely) and hidden not in leads.takes
            return not _of_text(root) and (from_outside or any(not tower.named for tower in lonely))
        return elsewhere or bool(fed) or hidden not in leads.takes

    def _place_projector(self, root: Path, said: str, leads: Leading) -> None:
        if said.endswith("_encoder"):
            self._claim(
                root, joined(said.removesuffix("_encoder")), f"leads to width {self._backbone.width}, has no layers"
            )
            return
        exact = [tower for tower in self.towers if any(leads.takes_from(size) for size in tower.widths)]
        fed = exact or [tower for tower in self.towers if self._feeds(tower, leads)]
        if len({tower.modality for tower in fed}) > 1:
            lonely = [tower for tower in fed if not self._has_projector(tower)]
            fed = lonely or fed
        kinds = {tower.modality for tower in fed}
        if len(kinds) == 1:
            self._claim(root, joined(fed[0].modality), self._from(fed[0]))
        elif "projector" not in said:
            lonely = [tower for tower in self.towers if not self._has_projector(tower)]
            modality = lonely[0].modality if len({tower.modality for tower in lonely}) == 1 else None
            self._claim(root, joined(modality), f"leads to width {self._backbone.width}")

    def _place_vectors(self, root: Path, said: str, sizes: frozenset[int], hidden: int) -> None:
        """Norms and marks beside a projector: of a foreign tower's width, or of the language model's."""
        foreign = [tower for tower in self.towers if not tower.named]
        fed = [tower for tower in foreign if sizes & tower.widths] or (foreign if hidden in sizes else [])
        if said.endswith("_encoder"):
            if hidden in sizes and all(hidden not in tower.widths for tower in self.towers):
                self._claim(root, joined(said.removesuffix("_encoder")), f"is of width {hidden}")
        elif fed:
            kinds = {tower.modality for tower in fed}
            self._claim(root, joined(kinds.pop() if len(kinds) == 1 else None), "stands between a tower and the layers")

    def _leads_into_projector(self, leads: Leading, said: str) -> str | None:
        """The projector that takes exactly what comes out here, which a tower feeds."""
        if not leads.sides or not any(self._feeds(tower, leads) for tower in self.towers):
            return None
        for one in self.found:
            if one.component.endswith("projector") and said != BACKBONE:
                into = Leading.of(under(self._tensors, one.root))
                if leads.gives and leads.gives <= into.takes and self._backbone.width not in leads.gives:
                    return one.component
        return None

    def _feeds(self, tower: Tower, leads: Leading) -> bool:
        return any(leads.takes_from(size) or leads.takes_several(size) for size in tower.widths)

    def _has_projector(self, tower: Tower) -> bool:
        """Whether a projector of its modality is known that is not another tower's own."""
        wanted = joined(tower.modality)
        roots = [one.root for one in self.found if one.component == wanted]
        if tower.named:
            roots += {at.root for at in self._placed.values() if at.component == wanted and at.sure}
        others = [other.root for other in self.towers if other is not tower and other.named]
        return any(not any(root[: len(other)] == other for other in others) for root in roots)

    def _from(self, tower: Tower) -> str:
        sizes = " or ".join(map(str, sorted(tower.widths)))
        return f"leads from width {sizes} of {'.'.join(tower.root)} to {self._backbone.width}"

    # ---------------------------------------------------------------------------------------------------- places

    def _at(self, path: Path) -> Placed:
        """Where names place the tensors under a path."""
        return next(self._placed[name] for name in under(self._tensors, path))

    def _root(self, path: Path) -> Path:
        """The outermost module that holds this and nothing of the language model's layers."""
        return path[: common(path, self._backbone.path) + 1]

    def _claim(self, root: Path, component: str, reason: str) -> None:
        self.found.append(Found(root, component, reason))
        tower = component.endswith("encoder")
        for name in under(self._tensors, root):
            at = self._placed[name]
            elsewhere = at.sure and at.component.endswith(("_encoder", "projector", "_decoder"))
            if tower and elsewhere:
                continue
            if tower and at.root and "projector" in at.component:  # it does not say of what: of this tower
                self.components[name] = joined(component.removesuffix("encoder").rstrip("_") or None)
            else:
                self.components[name] = component


def _widths(found: Iterable[Stack]) -> frozenset[int]:
    return frozenset(stack.width for stack in found)


def _of_text(root: Path) -> bool:
    return any("text" in part.split("_") for part in root)


def _tower_named(kind: str) -> str | None:
    return kind if kind in modalities.TOWERS else None
