"""Weighted averages and sums of task vectors."""

from __future__ import annotations

from typing import Annotated

from taskmerge.declarations import Doc
from taskmerge.kernels.program import Program
from taskmerge.methods import pieces
from taskmerge.methods.options import MergeWeights, Normalize
from taskmerge.methods.registry import merge_method


@merge_method(source="Model Soups, arXiv 2203.05482")
def linear(
    weights: MergeWeights,
    *,
    normalize: Annotated[bool, Doc("divide by the sum of the weights; false sums the models as they are")] = True,
) -> Program:
    """Average the specialists themselves by weight: Σ w x / Σ w.

    Rejects weights that are not zero but sum to zero. With normalize false the result is Σ w x, independent of the
    base, and 0 if all weights are 0.
    """
    return Program(pieces.shares(weights, normalize), base="weighted" if normalize else "summed")


@merge_method(aliases=("sum",), source="Task Arithmetic, arXiv 2212.04089")
def task_arithmetic(weights: MergeWeights, *, normalize: Normalize = False) -> Program:
    """Add the weighted sum of the task vectors to the base: b + λ Σ w d."""
    return Program(pieces.shares(weights, normalize))
