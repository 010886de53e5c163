"""All tensors of all inputs under the base's names: who has which, and which component each belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.components import BUFFERS, HEAD, Components, component_map
from taskmerge.checkpoints.lineage.grafts import brought, grafted_config, side_folders
from taskmerge.checkpoints.lineage.names import ties_its_head
from taskmerge.checkpoints.selector import Selector
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import Problem


@dataclass(frozen=True)
class Census:
    """inputs: label -> tensors under one naming. own: tensors the base lacks -> specialists that have them.
    naming: label of the input whose names and class these are. grafts: specialist -> components it brings."""

    inputs: Mapping[str, StateDict]
    own: Mapping[str, list[str]]
    components: Components
    naming: str = BASE
    grafts: Mapping[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Mapping[str, StateDict], overrides: Mapping[str, Sequence[str]], naming: str = BASE) -> Census:
        """Takes the census. Raises MergeError for an override that matches nothing."""
        base = inputs[BASE]
        everything = dict(base.tensors)
        own: dict[str, list[str]] = {}
        for label, state_dict in inputs.items():
            for name, info in state_dict.tensors.items():
                if name not in base.tensors:
                    own.setdefault(name, []).append(label)
                    everything.setdefault(name, info)
        config = inputs[naming].config or base.config
        components = component_map(everything, config, overrides)
        homes = {name: components.home(name) for name in components}
        return cls(inputs, own, components, naming, brought(own, homes, {homes[name] for name in base.tensors}))

    @property
    def base(self) -> StateDict:
        """The base."""
        return self.inputs[BASE]

    @property
    def specialists(self) -> list[str]:
        """Their labels, in the recipe's order."""
        return [label for label in self.inputs if label != BASE]

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the result: the naming input's, with what grafted specialists add."""
        added = {label: (self.inputs[label].config, bring) for label, bring in self.grafts.items()}
        return grafted_config(self.inputs[self.naming].config or self.base.config, added)

    @property
    def side_folders(self) -> tuple[Path, ...]:
        """Where config, processor and tokenizer files come from; the first folder that has a file wins."""
        return side_folders(self.inputs, [self.naming, *self.grafts, BASE])

    @property
    def module_folders(self) -> dict[str, str]:
        """Module -> folder, of all inputs together."""
        folders: dict[str, str] = {}
        for state_dict in self.inputs.values():
            for module, folder in state_dict.beside.module_folders.items():
                folders.setdefault(module, folder)
        return folders

    def selects(self, pattern: str, name: str) -> bool:
        """Whether a pattern of the recipe names a tensor."""
        return self.selector.matches(pattern, name)

    @cached_property
    def selector(self) -> Selector:
        """Reads the recipe's patterns."""
        return Selector(self.components)

    def misfits(self, name: str, labels: Sequence[str]) -> list[Problem]:
        """Why a tensor of the base cannot be compared with some specialists': absent, of another shape or kind."""
        info = self.base.tensors[name]
        advice = f"is it the same lineage? A rule keeps one side: - {{match: {name!r}, keep: base}}"
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
        """Why a specialist may lack a tensor of the base: it has no such head, buffer or component; else None."""
        if self.components[name] in (HEAD, BUFFERS):
            return f"{label} stores no such {self.components[name]} tensor"
        home = self.components.home(name)
        if any(self.components.home(other) == home for other in self.inputs[label].tensors):
            return None
        return f"{label} has no {home}"

    def surplus(self, name: str, owners: Sequence[str]) -> str | None:
        """Why a tensor the base lacks has no place in the output: a head or buffer that goes with no new module."""
        home = self.components.home(name)
        if self.components[name] == BUFFERS and any(self.components.home(one) == home for one in self.base.tensors):
            return "the base stores no such buffer"
        if home == HEAD and not set(self.grafts) & set(owners):
            return "the base has no such head; a rule or `copy` may take it"
        return None

    def untied_head(self, name: str, owners: Sequence[str]) -> str | None:
        """The first owner of an lm_head of its own (its config does not tie it), where the base ties its head."""
        if name.split(".")[-2:] != ["lm_head", "weight"] or not ties_its_head(self.base.config):
            return None
        return next((label for label in owners if ties_its_head(self.inputs[label].config) is False), None)

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
                            Problem(f"copy: {first} and {label} both claim {name!r}", place, "name it once")
                        )
        return copied
