"""Many merges of the same models: opened and aligned once, and what does not change from one to the next found once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property

import numpy as np

from taskmerge.checkpoints.lineage.alignment import align_all
from taskmerge.checkpoints.output.saving import CHUNK
from taskmerge.checkpoints.state_dict import BASE
from taskmerge.errors import MergeError, few
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.inputs import Inputs, open_inputs
from taskmerge.merging.never_merged import check_packing
from taskmerge.merging.plan import plan_aligned
from taskmerge.merging.steps import Plan, TensorStep
from taskmerge.merging.tokenizer import vocabularies
from taskmerge.methods.remembered import Remembered
from taskmerge.recipes import Recipe, runs_of

MEMORY = 4 << 30
"""Bytes of results that are kept from one merge for the next."""


class Bench:
    """The models of a recipe, ready to be merged again and again with other numbers and methods.

    Attributes:
        recipe: the one that they were opened for; others must name the same models.
        plan: its own plan.
        store: what merges have in common, with counts of what was computed.
    """

    def __init__(
        self, recipe: Recipe, inputs: Inputs | None = None, *, device: str = "cpu", memory: int = MEMORY
    ) -> None:
        """Open and align.

        Args:
            recipe: whose models.
            inputs: the models, where they are open already.
            device: where the arithmetic runs.
            memory: bytes of results that are kept.

        Raises:
            RecipeError, MergeError, CheckpointError: with every problem found, as `plan` does.
        """
        self.inputs = open_inputs(recipe) if inputs is None else inputs
        check_packing(self.inputs.state_dicts)
        self._alignment = align_all(
            self.inputs.state_dicts, recipe.components, vocabularies(recipe.output), self.inputs.own_bases,
            runs_of(recipe.stack),
        )  # fmt: skip
        self.recipe = recipe
        self.store = Remembered(memory)
        self._device = device
        self.plan = self.planned(recipe)

    @cached_property
    def unmoved(self) -> frozenset[str]:
        """Tensors in which no specialist differs from the base, where all are adapters: layers that none adapts.

        Adding any multiple of nothing to the base leaves it, so that trials need not.
        """
        plan = self.plan
        steps = [step for step in plan.steps if step.action == "merge" and
                 all(source.label in plan.adapters for source in step.specialists)]  # fmt: skip
        return frozenset(step.info.name for step in steps if _is_unmoved(plan, step))

    def planned(self, recipe: Recipe) -> Plan:
        """Return the plan of a recipe over these models. Raises as `plan` does."""
        return plan_aligned(recipe, self.inputs, self._alignment)

    def fused(self, plan: Plan) -> FusedStateDict:
        """Return the merged model, with the same bits as a fuse writes.

        Raises:
            MergeError: when it has other tensors than the recipe's own merge.
        """
        own, other = ({step.info.name for step in one.steps} for one in (self.plan, plan))
        if own != other:
            names = few(sorted(own ^ other), 3)
            raise MergeError(
                f"the result does not have the same tensors as the recipe's own merge: {names}",
                next_move="keep copy, drop rules and tokenizer settings as in the recipe",
            )
        self.store.next_round()
        return FusedStateDict(plan, self._device, self.store)


def squared_lengths(fused: FusedStateDict) -> dict[str, float]:
    """Specialist -> ‖d‖² of its task vector over all tensors that are merged."""
    found: dict[str, float] = {}
    for step in fused.plan.steps:
        for source in step.specialists if step.action == "merge" else ():
            for start in range(0, step.info.count, CHUNK):
                part = fused.operands.part_of_delta(step, source, start, min(start + CHUNK, step.info.count))
                found[source.label] = found.get(source.label, 0.0) + float(part @ part)
    return found


def _is_unmoved(plan: Plan, step: TensorStep) -> bool:
    base = plan.base.read(step.source.name)
    return all(
        plan.inputs[source.label].delta(source.name) is None
        and np.array_equal(base, plan.inputs[source.label].read(source.name))
        for source in step.specialists
    )


def changed(before: Plan, after: Plan, unmoved: Collection[str] = ()) -> list[str]:
    """Return the tensors that differ between two plans over the same models, in output order.

    unmoved: those in which no specialist differs from the base, see `Bench.unmoved`.
    """
    old = {step.info.name: step for step in before.steps}
    over_model = _trimmed_over_model(before) != _trimmed_over_model(after)
    return [
        step.info.name
        for step in after.steps
        if (not _alike(old.get(step.info.name), step, before, after) or (over_model and _is_over_model(after, step)))
        and not (step.info.name in unmoved and _adds(before, old[step.info.name]) and _adds(after, step))
    ]


def _adds(plan: Plan, step: TensorStep) -> bool:
    """Whether a step gives the base where nothing is added to it."""
    if step.action == "keep":
        return step.source.label == BASE
    program = plan.program(step) if step.action == "merge" else None
    return program is not None and program.base == "added"


def _alike(one: TensorStep | None, two: TensorStep, before: Plan, after: Plan) -> bool:
    if one is None or replace(one, rule="") != replace(two, rule=""):
        return False
    if two.action != "merge":
        return True
    methods = before.methods[one.method], after.methods[two.method]
    return (methods[0].function, methods[0].weighted_by) == (methods[1].function, methods[1].weighted_by)


def _trimmed_over_model(plan: Plan) -> list[object]:
    """What decides the thresholds that are taken over a whole model."""
    return [
        (step.info.name, step.specialists, program.ways)
        for step in plan.steps
        if step.action == "merge" and (program := plan.program(step)) is not None and program.across_model
    ]


def _is_over_model(plan: Plan, step: TensorStep) -> bool:
    program = plan.program(step) if step.action == "merge" else None
    return program is not None and program.across_model
