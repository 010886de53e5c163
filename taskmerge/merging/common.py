"""Results that merges of the same inputs share: measuring passes, and merged deltas before their scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskmerge.kernels import Measurement
from taskmerge.merging.steps import Plan, Streamed, TensorStep
from taskmerge.methods.remembered import Remembered

if TYPE_CHECKING:
    from torch import Tensor


def measurement(
    store: Remembered | None,
    plan: Plan,
    step: TensorStep,
    streamed: Streamed,
    thresholds: Measurement | None,
    measure: Callable[[], Measurement | None],
) -> Measurement | None:
    """Return the results of the passes over a tensor, shared by all weights and scales that do not change them."""
    if store is None:
        return measure()
    program = streamed.program
    gram = program.gram_of if program.from_gram is not None else None
    given = None if thresholds is None else (thresholds.lowest, thresholds.highest)
    seed = plan.seed if program.random else None
    exact = step.info.dtype == "F64"
    key = ("passes over a tensor", step.info.name, streamed.sources, program.ways, gram, given, seed, exact,
           _protection(plan, step))  # fmt: skip
    found: Measurement | None = store.get(key, measure)
    return None if found is None else found.weighed(program)


def merged_delta(
    store: Remembered | None, plan: Plan, step: TensorStep, merge: Callable[[dict[str, Any]], Tensor]
) -> Tensor:
    """Return the merged delta of a method of complete tensors, scaled; the unscaled delta is computed once.

    merge: what merges by these options; it is given a scale of 1.
    """
    method = plan.methods[step.method]
    if store is None or "scale" not in step.options or method.scale(step.options) != step.options["scale"]:
        return merge(dict(step.options))
    options = {**step.options, "scale": 1.0}
    seed = plan.seed if "random_bits" in method.inputs else None
    key = ("merged deltas", step.info.name, step.specialists, step.weights, method.name, method.function,
           method.weighted_by, tuple(sorted(options.items())), seed, _protection(plan, step))  # fmt: skip
    merged: Tensor = store.get(key, lambda: merge(options))
    return merged * method.scale(step.options)


def _protection(plan: Plan, step: TensorStep) -> tuple[Any, ...]:
    return (step.protected, plan.protect_energy) if step.protected else ()
