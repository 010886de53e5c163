"""TIES: trim, elect sign, merge what agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from taskmerge.declarations import Doc
from taskmerge.kernels.program import Elect, KeepLargest, Program
from taskmerge.methods.options import Average, Density, ElectSign, Scale
from taskmerge.methods.pieces import elect_and_merge, keep_largest, sparsifying
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

Trim = Annotated[
    Literal["tensor", "model"],
    Doc("keep the largest entries of each tensor, or of the whole model (as the paper's own code does)"),
]


def _stream(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        tuple(weights),
        options["scale"],
        sparsify=sparsifying(KeepLargest, options["density"], 0.0, options["trim"]),
        consensus=Elect(options["elect"], options["average"]),
    )


@merge_method(source="TIES-Merging, arXiv 2306.01708", stream=_stream)
def ties(
    deltas: Tensor,
    weights: Tensor,
    thresholds: Tensor | None = None,
    *,
    density: Density = 0.2,
    trim: Trim = "tensor",
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
    scale: Scale = 1.0,
) -> Tensor:
    """Trim small entries, elect a sign per entry, average what agrees with it.

    Keeps the max(1, ⌊ρ·n⌋) entries of largest magnitude of each task vector, entries equal to the threshold all kept,
    so that no sort's tie order matters. A zero sum elects +. Entries that were trimmed do not count in the mean.

    deltas (specialists, *shape), weights (specialists,) -> (*shape). With trim "model" the least magnitudes kept are
    given as thresholds (specialists,); without them the tensor is taken to be the whole model.
    Differs elsewhere: the paper's code trims over the whole model; mergekit trims per tensor and its
    `normalize: false` is average "none" here.
    """
    trimmed = keep_largest(deltas, density, thresholds=thresholds)
    return scale * elect_and_merge(trimmed, weights, elect, average)
