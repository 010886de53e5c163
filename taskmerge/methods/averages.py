"""Weighted averages and sums of task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

from taskmerge.declarations import Doc
from taskmerge.kernels.program import Program
from taskmerge.methods.options import Normalize, Scale
from taskmerge.methods.pieces import normalized, normalized_values, weighted_sum
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor


def _stream_linear(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    if options["normalize"]:
        return Program(normalized_values(weights), options["scale"])
    if not any(weights):
        return Program(tuple(weights), options["scale"])
    surplus = sum(Fraction(weight) for weight in weights) - 1
    return Program(tuple(weights), options["scale"], base_factor=1 + Fraction(options["scale"]) * surplus)


@merge_method(source="Model Soups, arXiv 2203.05482", stream=_stream_linear)
def linear(
    deltas: Tensor,
    weights: Tensor,
    base: Tensor,
    *,
    normalize: Annotated[bool, Doc("divide by the sum of the weights; false sums the models as they are")] = True,
    scale: Scale = 1.0,
) -> Tensor:
    """Weighted average of the specialists themselves: Σ w x / Σ w.

    deltas (specialists, *shape), weights (specialists,), base (*shape) -> (*shape). Raises MergeError when weights that
    are not zero sum to zero. With normalize false the result is Σ w x, whatever the base.
    """
    if normalize:
        return scale * weighted_sum(deltas, normalized(weights))
    if not weights.any():
        return 0.0 * weighted_sum(deltas, weights)
    return scale * (weighted_sum(deltas, weights) + (weights.double().sum() - 1.0).to(base) * base)


def _stream_sum(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(normalized_values(weights) if options["normalize"] else tuple(weights), options["scale"])


@merge_method(aliases=("sum",), source="Task Arithmetic, arXiv 2212.04089", stream=_stream_sum)
def task_arithmetic(deltas: Tensor, weights: Tensor, *, normalize: Normalize = False, scale: Scale = 1.0) -> Tensor:
    """The base plus the weighted sum of the task vectors: b + λ Σ w d.

    deltas (specialists, *shape), weights (specialists,) -> (*shape).
    """
    return scale * weighted_sum(deltas, normalized(weights) if normalize else weights)
