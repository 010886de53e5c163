"""Towers of a user's own class: layers that are not the language model's, and what they take."""

from __future__ import annotations

from collections.abc import Sequence

from taskmerge.checkpoints.component_names import BACKBONE, HEAD, STRUCTURE, Placed
from taskmerge.checkpoints.config_sections import sections, width
from taskmerge.checkpoints.foreign_parts import Parts, Tower, of_text, widths
from taskmerge.checkpoints.structure import Leading, Path, Stack, under
from taskmerge.words import modalities


class Towers:
    """The encoders of one checkpoint, found among the tensors that no name reveals."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def place(self) -> None:
        """Fill `parts.towers`."""
        self.parts.towers += self._named_towers()
        self._find_towers()
        self._find_misnamed()

    def add(self, root: Path, found: Sequence[Stack]) -> None:
        """Add an encoder that no name reveals. found: its layers; none for one of convolutions alone."""
        modality, reason = self._modality(root, found)
        tower = Tower(root, widths(found), modality, False, tuple(found))
        self.parts.towers.append(tower)
        if found:
            stack = max(found, key=lambda one: one.entries)
            reason = f"{stack.layers} layers of width {stack.width}; {reason}"
        self.parts.claim(root, tower.component, reason)

    def _named_towers(self) -> list[Tower]:
        towers: dict[Path, list[Stack]] = {}
        for stack in self.parts.layout.stacks:
            at = self._said(stack)
            if at.sure and at.component.endswith("_encoder"):
                towers.setdefault(at.root or stack.path, []).append(stack)
        return [
            Tower(
                root, widths(found), self.parts.at(found[0].path).component.removesuffix("_encoder"), True, tuple(found)
            )
            for root, found in towers.items()
        ]

    def _said(self, stack: Stack) -> Placed:
        return self.parts.at(stack.path)

    def _find_towers(self) -> None:
        roots: dict[Path, list[Stack]] = {}
        for stack in self.parts.layout.stacks:
            at = self._said(stack)
            if stack is not self.parts.backbone and not at.sure and at.component in (BACKBONE, HEAD):
                root = self.parts.root(stack.path)
                if self._is_foreign(stack, root):
                    roots.setdefault(root, []).append(stack)
        for root, found in sorted(roots.items(), key=lambda item: self.parts.raw(item[0]) is None):
            if not self._leads_out_of_another(root):
                for own_root, own in self._split(root, found):
                    self.add(own_root, own)

    def _find_misnamed(self) -> None:
        """Modules that are called projectors and hold layers and what takes raw input: towers all the same."""
        roots = {at.root for at in self.parts.placed.values() if at.root and at.component.endswith("projector")}
        for root in sorted(roots):
            own = [stack for stack in self.parts.layout.stacks if stack.path[: len(root)] == root]
            raw, takes = self.parts.raw(root), Leading.of(self.parts.loose(root)).takes
            modality = _tower_named(raw.partition(":")[0]) if raw else None
            fed = any(tower.root[: len(root)] == root or tower.widths & takes for tower in self.parts.towers)
            if own and raw is not None and modality is not None and not fed:
                tower = Tower(root, widths(own), modality, True, tuple(own))
                self.parts.towers.append(tower)
                self.parts.rename(root, tower.component, f"holds layers, and {raw.partition(': ')[2]}")

    def _leads_out_of_another(self, root: Path) -> bool:
        """Whether layers take what another tower puts out, and lead on: a projector of many layers."""
        leads = Leading.of(self.parts.loose(root))
        from_tower = any(leads.takes_from(size) for tower in self.parts.towers for size in tower.widths)
        return self.parts.raw(root) is None and leads.leads_to(self.parts.hidden) and from_tower

    def _split(self, root: Path, found: Sequence[Stack]) -> list[tuple[Path, list[Stack]]]:
        """One tower, or one for each module below the root when these are of different modalities."""
        below: dict[Path, list[Stack]] = {}
        for stack in found:
            below.setdefault(stack.path[: len(root) + 1], []).append(stack)
        said = {path: self._modality(path, own)[0] for path, own in below.items()}
        return list(below.items()) if len(set(said.values()) - {None}) > 1 else [(root, list(found))]

    def _is_foreign(self, stack: Stack, root: Path) -> bool:
        """Whether layers do not belong to the language model: they take raw input, bear the name of an encoder, or
        have another width or other insides."""
        if of_text(root) or any(
            self.parts.placed[name].component == HEAD and self.parts.placed[name].sure
            for name in under(self.parts.tensors, stack.path)
        ):
            return False
        if self.parts.raw(root) is not None or any(modalities.tower_of_encoder(part) for part in stack.path):
            return True
        if (
            root[-1] in STRUCTURE
            and self.parts.layout.backbone is not None
            and self.parts.backbone.path[len(root) - 1] in STRUCTURE
        ):
            return False  # the other half of an encoder-decoder
        alike = len(stack.inner & self.parts.backbone.inner) > len(stack.inner) / 2
        return stack.width != self.parts.backbone.width or not alike

    def _modality(self, root: Path, found: Sequence[Stack]) -> tuple[str | None, str]:
        """Of a tower, and what tells it."""
        raw = self.parts.raw(root)
        if raw is not None:
            modality, _, said = raw.partition(": ")
            return _tower_named(modality), said
        for part in (*root, *(part for stack in found for part in stack.path)):
            if (named := modalities.tower_of_encoder(part)) is not None:
                return named, f"{part} is the name of such an encoder"
        for path, section in sections(self.parts.config):
            said_by = modalities.tower_in(path.replace("-", "_").replace(".", "_").split("_"))
            if said_by is not None and width(section) in widths(found):
                return said_by, f"{path} in the config has this width"
        taken = {tower.modality for tower in self.parts.towers}
        sole = {
            said_by
            for path, _ in sections(self.parts.config)
            if (said_by := modalities.tower_in(path.replace("-", "_").replace(".", "_").split("_"))) is not None
        } - taken
        if len(sole) == 1:
            modality = sole.pop()
            return modality, f"the config mentions {modality}, and no other part is of that modality"
        return None, "nothing identifies its modality"


def _tower_named(kind: str) -> str | None:
    return kind if kind in modalities.TOWERS else None
