"""A merge whose output stores weights in few bits, as its base does: what is checked, laid out and said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from taskmerge.checkpoints.output.layout import lay_out
from taskmerge.checkpoints.repacking import Repacked, Unpacked, packed_infos, said_of
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import RecipeError
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.steps import Plan
from taskmerge.recipes import Recipe

_KEY = "quantization_config"


def check_quantized(base: StateDict, recipe: Recipe) -> None:
    """Raise RecipeError where the base has no weights in few bits, or not under its own names."""
    if not isinstance(base, Unpacked):
        what = f"output: quantized, but {base.label} has no quantised weights of a supported kind"
        raise RecipeError(what, recipe.output.place, "leave it out")


def packed_as_base(plan: Plan, recipe: Recipe, base: StateDict) -> Plan:
    """Return the plan of the same merge in the number formats of the base, with a note on the loss."""
    assert isinstance(base, Unpacked)
    merged = {step.info.name: step.info for step in plan.steps}
    lost = [name for name, codec in base.codecs.items() if name in merged and merged[name].shape != codec.dims]
    if lost:
        what = f"output: quantized, but {lost[0]!r} does not have the same shape as in the base"
        raise RecipeError(what, recipe.output.place, "leave it out")
    infos = packed_infos(merged, base)
    config: Mapping[str, Any] = plan.beside.config
    said = base.source.config.get(_KEY)
    if said is not None:
        config = {**config, _KEY: said}
    return replace(
        plan,
        shards=tuple(lay_out(infos.values(), recipe.output.shard_size, plan.beside.module_folders)),
        beside=replace(plan.beside, config=config),
        notes=(*plan.notes, *said_of(merged, base)),
        packing=base,
    )


def steps_in(plan: Plan, names: Iterable[str]) -> set[str]:
    """Return the steps for output tensors with these names; for a weight stored as several tensors, the first one's."""
    if plan.packing is None:
        return set(names)
    first = {codec.stored[0]: name for name, codec in plan.packing.codecs.items()}
    planned = {step.info.name for step in plan.steps}
    return {first.get(name, name) for name in names} & planned


def result_of(fused: FusedStateDict) -> StateDict:
    """Return the tensors that are written: the merged ones, packed if the plan says so."""
    return fused if fused.plan.packing is None else Repacked(fused, fused.plan.packing)
