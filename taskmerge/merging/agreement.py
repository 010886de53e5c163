"""Checks that the inputs of a plan are models of one kind: number of layers, and settings that affect equal shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from taskmerge.checkpoints.components import HEAD, numbered
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.lineage.configs import differences, swapped_labels
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.errors import Problem
from taskmerge.merging.steps import TensorStep
from taskmerge.words.tables import counted


class Layers:
    """The layers that specialists add to the base's own stacks. base: names of its tensors."""

    def __init__(self, base: Iterable[str]) -> None:
        self._known: dict[str, set[int]] = {}
        for name in base:
            container, number = numbered(name)
            if number is not None:
                self._known.setdefault(container, set()).add(number)
        self._deeper: dict[tuple[str, str], set[int]] = {}
        self._inside: dict[tuple[str, str], list[str]] = {}

    def beyond(self, name: str, owners: Sequence[str]) -> bool:
        """Return whether a tensor belongs to a layer that the base lacks, in a stack that the base has."""
        container, number = numbered(name)
        known = self._known.get(container)
        if known is None or number is None:
            return False
        if number in known:
            return False
        for owner in owners:
            self._deeper.setdefault((owner, container), set()).add(number)
        return True

    def copied(self, name: str, owner: str) -> None:
        """Note a tensor that the base lacks and that is copied from `owner`."""
        container, number = numbered(name)
        if number is not None and number in self._known.get(container, ()):
            self._inside.setdefault((owner, container), []).append(name)

    def problems(self) -> Iterator[Problem]:
        """Stacks of more layers than the base's, one problem each."""
        for (owner, container), numbers in self._deeper.items():
            has, all_told = len(self._known[container]), len(numbers | self._known[container])
            glob = f"{container}.{{{min(numbers)}..{max(numbers)}}}.*"
            yield Problem(
                f"{owner} has {all_told} layers in {container!r}, the base {has}: the base has no tensors "
                "for the additional layers",
                None,
                "fuse models with the same number of layers, or leave these out: rules: - "
                f"{{match: {glob!r}, drop: true}}",
            )

    def warnings(self) -> Iterator[str]:
        """Yield a warning for tensors in layers that the base has, if its layers lack them."""
        for (owner, container), names in self._inside.items():
            yield (
                f"{owner} has {counted(len(names), 'tensor')} in {container!r} that the base's own layers lack, such "
                f"as {names[0]!r}: copied, not merged; the model class must define them, or a rule must drop "
                "them (drop: true)"
            )


def settings(
    census: Census, inputs: Mapping[str, StateDict], steps: Iterable[TensorStep]
) -> tuple[list[Problem], list[str]]:
    """Find settings in which the configs of merged specialists differ from the base's: problems, and warnings.

    inputs: as they were opened, under their own configs.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    merged: dict[str, list[TensorStep]] = {}
    for step in steps:
        if step.action == "merge":
            for source in step.specialists:
                merged.setdefault(source.label, []).append(step)
    ours = inputs[BASE].config
    for label, own in merged.items():
        theirs = inputs[label].config
        for one in differences(ours, theirs):
            what = f"config.json: {one.key} is {_short(one.theirs)} in {label}, but {_short(one.ours)} in the base"
            if one.serious:
                move = f"check that {label} was trained from this base; if one config.json is wrong, correct it"
                problems.append(Problem(f"{what}: tensors of the same shape do not mean the same", None, move))
            else:
                warnings.append(f"{what}; the result uses the value of {census.naming.label}")
        heads = [step.info.name for step in own if step.component == HEAD and _is_of_labels(step, ours)]
        labels = swapped_labels(ours, theirs) if heads else None
        if labels is not None:
            what = f"id2label lists {labels[0]!r} in the base, but {labels[1]!r} in {label}"
            move = "use the same order of labels in both, or keep one head: rules: - {match: head, keep: base}"
            problems.append(
                Problem(f"config.json: {what}: rows of {heads[0]!r} belong to different classes", None, move)
            )
    return problems, warnings


def _is_of_labels(step: TensorStep, config: Mapping[str, Any]) -> bool:
    return bool(step.info.shape) and step.info.shape[0] == len(config.get("id2label") or ())


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
