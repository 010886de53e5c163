"""Recipe -> Plan: every check of a merge, from headers and configs alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from taskmerge.checkpoints.lineage.alignment import Alignment, align_all
from taskmerge.checkpoints.state_dict import BASE, StateDict, adopted
from taskmerge.merging.decisions import Takes
from taskmerge.merging.few_bits import check_quantized
from taskmerge.merging.inputs import Inputs, open_inputs
from taskmerge.merging.never_merged import check_packing
from taskmerge.merging.planner import Planner
from taskmerge.merging.steps import Plan
from taskmerge.merging.tokenizer import vocabularies
from taskmerge.recipes import Recipe, runs_of


def plan(recipe: Recipe, inputs: Inputs | Mapping[str, StateDict] | None = None) -> Plan:
    """Decide what becomes of every tensor. Reads headers and configs; no tensor.

    Args:
        recipe: what is merged, and how.
        inputs: the base (under "base") and the specialists when they are already open, e.g. in memory.

    Raises: RecipeError, MergeError or CheckpointError with every problem found.
    """
    with _uncollected():
        return _planned(recipe, inputs)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing that a plan makes is garbage before it is done: looking for some takes a third of its time.

    What it made counts as old then, and is not looked through at once.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was and not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        if was:
            gc.enable()


def _planned(recipe: Recipe, inputs: Inputs | Mapping[str, StateDict] | None) -> Plan:
    if inputs is None:
        inputs = open_inputs(recipe)
    elif not isinstance(inputs, Inputs):
        inputs = Inputs({label: adopted(state_dict) for label, state_dict in inputs.items()})
    check_packing(inputs.state_dicts)
    if recipe.output.quantized:
        check_quantized(inputs.state_dicts[BASE], recipe)
    alignment = align_all(
        inputs.state_dicts, recipe.components, vocabularies(recipe.output), inputs.own_bases, runs_of(recipe.stack)
    )
    return plan_aligned(recipe, inputs, alignment)


def plan_aligned(
    recipe: Recipe, inputs: Inputs, alignment: Alignment, *, bare: bool = False, takes: Takes | None = None
) -> Plan:
    """Plan a merge as `plan` does, for inputs whose tensors have been aligned.

    bare: the output is the merged task vector, float64, without the base: only merged tensors, and tensors that
    specialists add. takes: (census, specialist, tensor) -> whether the specialist takes part in the tensor; default:
    always.
    """
    dtype = "float64" if bare else recipe.output.dtype or inputs.state_dicts[BASE].beside.output_dtype
    return Planner(recipe, inputs, alignment, dtype, bare, takes).plan()
