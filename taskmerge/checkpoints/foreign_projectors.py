"""Projectors between an encoder and the language model, found by their widths and by the modules that need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskmerge.checkpoints.component_names import BACKBONE, HEAD, TAIL, Placed, is_token_table, joined
from taskmerge.checkpoints.foreign_parts import Parts, Tower, of_text
from taskmerge.checkpoints.foreign_towers import Towers
from taskmerge.checkpoints.structure import HasHeader, Leading, Path, common, outside_layers, raw_input


class Projectors:
    """The projectors of one checkpoint whose names leave open their kind or their modality."""

    def __init__(self, parts: Parts, towers: Towers) -> None:
        self.parts, self._finder = parts, towers
        self._served: set[int] = set()  # places in parts.towers of those with a projector

    def place(self) -> None:
        """Fill `parts.components`."""
        self._serve_named()
        self._inside(named=False)
        units = self._units()
        self._loose(units)
        self._beside({root: said for root, said in units.items() if not self._is_placed(root)})
        self._inside(named=True)

    # ---------------------------------------------------------------------------------------------- who has one

    def _serve_named(self) -> None:
        """Projectors that say of what they are: which tower has them."""
        named = {
            at.root: at.component.removesuffix("_projector")
            for at in self.parts.placed.values()
            if at.sure and at.root and at.component.endswith("_projector")
        }
        for root, modality in named.items():
            own = [tower for tower in self.parts.towers if tower.modality == modality]
            holds = [tower for tower in own if root[: len(tower.root)] == tower.root]
            self._serve(root, holds or self._feeding(self._leads(root), own) or own)

    def _serve(self, root: Path, towers: Sequence[Tower]) -> None:
        """Notes which tower has this projector: the one that holds it, else the nearest of those that wait."""
        towers = [tower for tower in towers if root[: len(tower.root)] == tower.root] or towers
        if towers:
            waiting = self._waiting(towers) or list(towers)
            nearest = max(waiting, key=lambda tower: (common(root, tower.root), tower.named))
            self._served.add(self.parts.towers.index(nearest))

    def _waiting(self, towers: Iterable[Tower]) -> list[Tower]:
        return [tower for tower in towers if self.parts.towers.index(tower) not in self._served]

    def _leads(self, root: Path) -> Leading:
        """The widths that a module connects; for one with layers, those of the modules around them."""
        leads = Leading.of(self.parts.loose(root))
        return leads if leads.sides else Leading.of(self.parts.under(root))

    def _feeding(self, leads: Leading, towers: Iterable[Tower]) -> list[Tower]:
        """The towers whose vectors a module takes, one by one; failing that, several side by side."""
        towers = list(towers)
        exact = [tower for tower in towers if any(leads.takes_from(size) for size in tower.widths)]
        return exact or [tower for tower in towers if any(leads.takes_several(size) for size in tower.widths)]

    # ------------------------------------------------------------------------------------------- inside a tower

    def _inside(self, named: bool) -> None:
        """Modules in a tower that lead out of it; in one that names tell, only where no projector is known."""
        for tower in [tower for tower in self.parts.towers if tower.named is named]:
            if named and not self._waiting([tower]):
                continue
            for root, own in self._units_of(tower).items():
                leads = Leading.of(own)
                if (
                    not leads.leads_to(self.parts.hidden)
                    or self._is_raw(own, leads)
                    or not self._feeding(leads, [tower])
                ):
                    continue
                wider = self.parts.hidden not in tower.widths
                apart = not named and tower.stacks and not self._holds_core(root, tower)
                if wider or TAIL.fullmatch(root[-1]) or apart:
                    self._claim(root, [tower])

    def _units_of(self, tower: Tower) -> dict[Path, dict[str, HasHeader]]:
        """The modules of a tower outside its layers, each from where its path leaves theirs."""
        units: dict[Path, dict[str, HasHeader]] = {}
        for name, info in outside_layers(self.parts.under(tower.root), tower.stacks).items():
            parts = tuple(name.split("."))
            deepest = max((common(parts, stack.path) for stack in tower.stacks), default=len(tower.root))
            units.setdefault(parts[: max(deepest, len(tower.root)) + 1], {})[name] = info
        return units

    def _holds_core(self, root: Path, tower: Tower) -> bool:
        """Whether a module is in the innermost one that holds a tower's layers and what takes its raw input."""
        core = tower.stacks[0].path[:-1]
        for name in self.parts.loose(tower.root):
            path = tuple(name.split("."))
            if raw_input({name: self.parts.tensors[name]}) is not None:
                core = core[: common(core, path)]
        return root[: len(core)] == core

    # ---------------------------------------------------------------------------------------------- outside all

    def _units(self) -> dict[Path, str]:
        """Modules that are no tower's, and where their names place them: those that no word places, projectors that
        do not say of what, and what is named after a modality and has no layers."""
        claimed = tuple(".".join(tower.root) + "." for tower in self.parts.towers if not tower.named)
        units: dict[Path, str] = {}
        for name, at in self.parts.placed.items():
            if name in self.parts.components or "/" in name or (claimed and name.startswith(claimed)):
                continue
            parts = tuple(name.split("."))
            if at.root and (not at.sure or self._is_bare(at)):
                units.setdefault(at.root, at.component)
            elif _is_loose(name, at) and parts[: len(self.parts.backbone.path)] != self.parts.backbone.path:
                units.setdefault(self.parts.root(parts), at.component)
        return units

    def _is_bare(self, at: Placed) -> bool:
        """Whether what is named after a modality has no layers."""
        roots = (stack.path[: len(at.root)] for stack in self.parts.layout.stacks)
        return at.component.endswith("_encoder") and at.root not in roots

    def _loose(self, units: dict[Path, str]) -> None:
        """Places modules that lead to the language model's width, those first that leave least open."""
        named = {root: said for root, said in units.items() if said.endswith("_encoder")}
        for root, said in named.items():
            if self._leads_in(root):
                modality = said.removesuffix("_encoder")
                own = [tower for tower in self.parts.towers if tower.modality == modality]
                self._claim(root, own, joined(modality))
        for root, said in units.items():
            own_tensors = self.parts.under(root)
            if said == HEAD and self._is_raw(own_tensors, self._leads(root)):
                self._finder.add(root, ())
        named = {root: said for root, said in units.items() if "projector" in said}
        turned = {root: said for root, said in named.items() if self._is_of_another_order(root)}
        for root, said in turned.items():
            self._serve(root, [one for one in self.parts.towers if one.named and joined(one.modality) == said])
        self._assign([root for root in named if root not in turned], units)
        for place in (HEAD, BACKBONE):
            roots = [root for root, said in units.items() if said == place and not self._is_placed(root)]
            self._assign([root for root in roots if self._may_lead(root, place)], units)

    def _assign(self, roots: Sequence[Path], units: dict[Path, str]) -> None:
        """Gives each module the tower that feeds it: the certain ones first, then the nearest one."""
        pending = list(roots)
        while pending:
            options = {root: self._options(root) for root in pending}
            certain = [root for root in pending if len({tower.modality for tower in options[root]}) == 1]
            near = [(self._nearness(root, options[root]), root) for root in pending if options[root]]
            near = [pair for pair in near if pair[0] > 0]
            if certain:
                root, towers = certain[0], options[certain[0]]
            elif near:
                _, root = max(near, key=lambda pair: (pair[0], -pending.index(pair[1])))
                best = max(common(root, tower.root) for tower in options[root])
                towers = [tower for tower in options[root] if common(root, tower.root) == best]
            else:
                break
            self._claim(root, towers)
            pending.remove(root)
        for root in pending:
            if "projector" not in units[root]:
                self.parts.claim(root, joined(None), f"its output has width {self.parts.hidden}")

    def _is_of_another_order(self, root: Path) -> bool:
        """Whether the shapes of a projector by name say nothing: only its name, and the config, tell of what it is."""
        leads = self._leads(root)
        return bool(leads.sides) and not leads.leads_to(self.parts.hidden) and not self._has_layers(root)

    def _options(self, root: Path) -> list[Tower]:
        """The towers that may feed a module: those of its width that wait for a projector, or have one of its kind."""
        leads = self._leads(root)
        fed = self._feeding(leads, self.parts.towers) if leads.leads_to(self.parts.hidden) else []
        if fed:
            return self._waiting(fed) or fed
        foreign = [tower for tower in self.parts.towers if not tower.named]
        return self._waiting(self.parts.towers) or foreign if foreign else []

    def _nearness(self, root: Path, towers: Sequence[Tower]) -> int:
        """How much nearer the nearest tower is than those of other modalities; 0 when none is nearer."""
        best: dict[str | None, int] = {}
        for tower in towers:
            best[tower.modality] = max(best.get(tower.modality, 0), common(root, tower.root))
        first, *others = sorted(best.values(), reverse=True)
        return first - max(others, default=0)

    def _may_lead(self, root: Path, place: str) -> bool:
        """Whether a module that no word places is a projector."""
        leads, hidden = self._leads(root), self.parts.hidden
        if not leads.leads_to(hidden) or self._is_raw(self.parts.under(root), leads):
            return False
        fed = self._feeding(leads, self.parts.towers)
        if place == HEAD:
            return bool(fed) or hidden not in leads.takes
        # inside the language model's own module: only what a tower waits for
        waiting = self._waiting(fed)
        from_outside = any(hidden not in tower.widths for tower in waiting) and hidden not in leads.takes
        return not of_text(root) and (from_outside or any(not tower.named for tower in waiting))

    def _leads_in(self, root: Path) -> bool:
        leads = self._leads(root)
        return leads.leads_to(self.parts.hidden) and not self._is_raw(self.parts.under(root), leads)

    # -------------------------------------------------------------------------------------------- what is left

    def _beside(self, units: dict[Path, str]) -> None:
        """Modules that lead into a projector, and norms and marks next to it."""
        for root, said in units.items():
            leads = self._leads(root)
            if said == BACKBONE or "projector" in said:
                continue
            if leads.sides:
                if component := self._next(leads):
                    self.parts.claim(root, component, "its output is the input of that projector")
            elif self.parts.towers:
                self._place_vectors(root, said, leads.sizes)

    def _next(self, leads: Leading) -> str | None:
        """The projector that takes exactly what comes out of a module, which a tower feeds."""
        if not self._feeding(leads, self.parts.towers) or self.parts.hidden in leads.gives:
            return None
        for one in self.parts.inferred:
            if one.component.endswith("projector") and leads.gives <= self._leads(one.root).takes:
                return one.component
        return None

    def _place_vectors(self, root: Path, said: str, sizes: frozenset[int]) -> None:
        hidden = self.parts.hidden
        if said.endswith("_encoder"):
            if hidden in sizes and all(hidden not in tower.widths for tower in self.parts.towers):
                self.parts.claim(root, joined(said.removesuffix("_encoder")), f"has width {hidden}")
            return
        foreign = [tower for tower in self.parts.towers if not tower.named]
        fed = [tower for tower in foreign if sizes & tower.widths] or (foreign if hidden in sizes else [])
        if fed:
            kinds = {tower.modality for tower in fed}
            modality = kinds.pop() if len(kinds) == 1 else None
            self.parts.claim(root, joined(modality), "is between a tower and the layers")

    def _is_raw(self, tensors: dict[str, HasHeader], leads: Leading) -> bool:
        """Whether a module takes raw input, and not what a tower puts out."""
        outside = outside_layers(tensors, self.parts.layout.stacks)
        from_tower = any(leads.takes_from(size) for tower in self.parts.towers for size in tower.widths)
        return raw_input(outside) is not None and not from_tower

    def _is_placed(self, root: Path) -> bool:
        return any(name in self.parts.components for name in self.parts.under(root))

    def _has_layers(self, root: Path) -> bool:
        return any(stack.path[: len(root)] == root for stack in self.parts.layout.stacks)

    def _claim(self, root: Path, towers: Sequence[Tower], component: str = "") -> None:
        self._serve(root, towers)
        if towers:
            tower = max(towers, key=lambda tower: common(root, tower.root))
            sizes = " or ".join(map(str, sorted(tower.widths)))
            reason = f"maps {'.'.join(tower.root)} (width {sizes}) to width {self.parts.hidden}"
        else:
            reason = f"its output has width {self.parts.hidden}, and it has no layers"
        self.parts.claim(root, component or joined(towers[0].modality), reason)


def _is_loose(name: str, at: Placed) -> bool:
    return not at.sure and at.component in (BACKBONE, HEAD) and not is_token_table(name)
