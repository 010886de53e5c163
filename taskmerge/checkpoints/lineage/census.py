"""All tensors of all inputs under the base's names: who has which, and which component each belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.components import BUFFERS, HEAD, Components, component_map
from taskmerge.checkpoints.lineage.classes import class_name, lacks_head
from taskmerge.checkpoints.lineage.grafts import Naming, brought, grafted_config, merged_json, side_folders
from taskmerge.checkpoints.lineage.stacking import Run, stands_in
from taskmerge.checkpoints.selector import Selector
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import Problem


@dataclass(frozen=True)
class Census:
    """inputs: label -> tensors under one naming. own: tensors the base lacks -> specialists that have them.
    naming: whose names and class these are. grafts: specialist -> components it brings. stack: which layers of whom the
    inputs are made of; () where they are as they were stored."""

    inputs: Mapping[str, StateDict]
    own: Mapping[str, list[str]]
    components: Components
    naming: Naming = field(default_factory=Naming)
    grafts: Mapping[str, set[str]] = field(default_factory=dict)
    stack: Sequence[Run] = ()

    @classmethod
    def of(
        cls,
        inputs: Mapping[str, StateDict],
        overrides: Mapping[str, Sequence[str]],
        naming: Naming | None = None,
        stack: Sequence[Run] = (),
    ) -> Census:
        """Compare the tensors of all inputs. Raises MergeError for an override that matches nothing."""
        base, naming = inputs[BASE], naming or Naming()
        everything = dict(base.tensors)
        own: dict[str, list[str]] = {}
        for label, state_dict in inputs.items():
            for name, info in state_dict.tensors.items():
                if name not in base.tensors:
                    own.setdefault(name, []).append(label)
                    everything.setdefault(name, info)
        first = inputs[naming.label].config or base.config
        hints = merged_json(dict(first), *(state_dict.config for state_dict in inputs.values()))
        components = component_map(everything, hints, overrides, _told_by_their_owners(inputs, own))
        homes = {name: components.home(name) for name in components}
        grafts = brought(own, homes, {homes[name] for name in base.tensors})
        return cls(inputs, own, components, naming, grafts, stack)

    @property
    def base(self) -> StateDict:
        """The base."""
        return self.inputs[BASE]

    @property
    def specialists(self) -> list[str]:
        """The specialists' labels, in the recipe's order."""
        return [label for label in self.inputs if label != BASE]

    @property
    def config(self) -> dict[str, Any]:
        """The result's config.json: the naming input's, completed for modules of others in the output."""
        added = {label: (self.inputs[label].config, bring) for label, bring in self.grafts.items()}
        if self.naming.label != BASE:
            theirs = {self.components.home(name) for name in self.inputs[self.naming.label].tensors}
            added[BASE] = self.base.config, {self.components.home(name) for name in self.base.tensors} - theirs
        return grafted_config(self.inputs[self.naming.label].config or self.base.config, added)

    @property
    def side_folders(self) -> tuple[Path, ...]:
        """The folders of config, processor and tokenizer files; the first that has a file wins."""
        return side_folders(self.inputs, self.side_order)

    @property
    def side_order(self) -> list[str]:
        """The inputs whose side files the result gets; the first that has a file wins."""
        return [self.naming.label, *self.grafts, BASE]

    @property
    def module_folders(self) -> dict[str, str]:
        """Module -> folder, of all inputs together."""
        folders: dict[str, str] = {}
        for state_dict in self.inputs.values():
            for module, folder in state_dict.beside.module_folders.items():
                folders.setdefault(module, folder)
        return folders

    @cached_property
    def selector(self) -> Selector:
        """The selector for the recipe's patterns."""
        return Selector(self.components)

    def misfits(self, name: str, labels: Sequence[str]) -> list[Problem]:
        """Return the reasons why a tensor of the base cannot be compared with some specialists'."""
        info = self.base.tensors[name]
        advice = (
            f"check that both were trained from the same model; a rule keeps one side: - "
            f"{{match: {name!r}, keep: base}}"
        )
        advice += f"; in Python: without({name!r})"
        problems = []
        for label in labels:
            state_dict = self.inputs[label]
            other = state_dict.tensors.get(name)
            if other is None:
                if not self.absence(label, name):
                    what = f"{label} ({state_dict.label}) lacks the base's tensor {name!r}"
                    problems.append(Problem(what, None, advice))
            elif other.shape != info.shape:
                what = f"{name!r} is {list(info.shape)} in the base ({self.base.label})"
                what += f" and {list(other.shape)} in {label} ({state_dict.label})"
                problems.append(Problem(what, None, advice))
            elif other.format.mergeable != info.format.mergeable:
                what = f"{name!r} is {info.dtype} in the base and {other.dtype} in {label}"
                problems.append(Problem(what, None, advice))
        return problems

    def absence(self, label: str, name: str) -> str | None:
        """Return the reason why a specialist may lack a tensor of the base (head, buffer, component); else None."""
        if self.components[name] in (HEAD, BUFFERS):
            return f"{label} stores no such {self.components[name]} tensor"
        home = self.components.home(name)
        if self.stack and not stands_in(label, name, home, self.stack):
            return f"the stack uses no layer of {label} here"
        if any(self.components.home(other) == home for other in self.inputs[label].tensors):
            return None
        return f"{label} has no {home}"

    def surplus(self, name: str, owners: Sequence[str]) -> str | None:
        """Return the reason why a tensor that the base lacks cannot be in the output; None if it is copied."""
        if self.components[name] == BUFFERS and self._beside_the_bases(name):
            return "the base stores no such buffer"
        if self.components.home(name) != HEAD or self.naming.label in owners:
            return None
        if "/" in name:
            return "the base is not a sentence-transformers folder that runs such a module"
        config = self.inputs[self.naming.label].config or self.base.config
        lacking = lacks_head(config, name)
        return f"{class_name(config)}, the result's class, has no {lacking}" if lacking else None

    def _beside_the_bases(self, name: str) -> bool:
        """Whether the innermost module around a buffer that has weights is one of the base's."""
        parts = name.split(".")
        for stop in range(len(parts) - 1, -1, -1):
            inside = ".".join([*parts[:stop], ""]) if stop else ""
            holders = self._holders.get(inside)
            if holders:
                return BASE in holders
        return False

    @cached_property
    def _holders(self) -> dict[str, set[str]]:
        """Module path with its dot -> who has weights in it: the base, specialists with tensors the base lacks."""
        found: dict[str, set[str]] = {}
        for name in self.components:
            if self.components[name] != BUFFERS:
                parts = name.split(".")
                owners = {BASE} if name in self.base.tensors else set(self.own.get(name, ()))
                for stop in range(len(parts)):
                    found.setdefault(".".join([*parts[:stop], ""]) if stop else "", set()).update(owners)
        return found

    def copied(
        self, copy: Mapping[str, Iterable[str]], place: str, problems: list[Problem]
    ) -> dict[str, tuple[str, str]]:
        """Tensor -> (specialist, pattern) for what the recipe's `copy` names; contradictions go to `problems`."""
        copied: dict[str, tuple[str, str]] = {}
        for label, patterns in copy.items():
            tensors = self.inputs[label].tensors
            problems += self.selector.check(
                patterns, place, f"copy: {label}", among=tensors, of=label, also=("new_tokens",)
            )
            for pattern in patterns:
                for name in self.selector.names([pattern], tensors):
                    first, _ = copied.setdefault(name, (label, pattern))
                    if first != label:
                        problems.append(
                            Problem(f"copy: {first} and {label} are both listed for {name!r}", place, "list it once")
                        )
        return copied


def _told_by_their_owners(inputs: Mapping[str, StateDict], own: Mapping[str, list[str]]) -> dict[str, str]:
    """The kinds of towers and projectors that a specialist adds, from its own file, which has no others."""
    known: dict[str, str] = {}
    for label in {owners[0] for owners in own.values()}:
        parts = component_map(inputs[label].tensors, inputs[label].config)
        mine = [name for name, owners in own.items() if owners[0] == label]
        known |= {name: home for name in mine if (home := parts.home(name)).endswith(("_encoder", "_projector"))}
    return known
