"""Model Breadcrumbs: drop the outliers and the small entries of each task vector, keep what lies between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from taskmerge.declarations import Between, Doc, PerSpecialist
from taskmerge.kernels.program import Elect, KeepLargest, Program
from taskmerge.methods.options import Average, Density, Each, ElectSign, Normalize, Scale
from taskmerge.methods.pieces import (
    elect_and_merge,
    keep_largest,
    normalized,
    normalized_values,
    sparsifying,
    weighted_sum,
)
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

Outliers = Annotated[
    Each,
    Between(0, 1, open="high"),
    PerSpecialist(),
    Doc("γ, the share of entries, the very largest, that is dropped first"),
]


def _stream(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        normalized_values(weights) if options["normalize"] else tuple(weights),
        options["scale"],
        sparsify=sparsifying(KeepLargest, options["density"], options["outliers"]),
    )


@merge_method(source="Model Breadcrumbs, arXiv 2312.06795", stream=_stream)
def breadcrumbs(
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.9,
    outliers: Outliers = 0.01,
    normalize: Normalize = False,
    scale: Scale = 1.0,
) -> Tensor:
    """Drop the largest γ of each task vector's entries, keep the next ρ, sum.

    Never drops everything: ⌊γ·n⌋ entries are skipped and at least one is kept; equal magnitudes are kept together.

    deltas (specialists, *shape), weights (specialists,) -> (*shape).
    """
    kept = keep_largest(deltas, density, skip=outliers)
    return scale * weighted_sum(kept, normalized(weights) if normalize else weights)


def _stream_ties(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        tuple(weights),
        options["scale"],
        sparsify=sparsifying(KeepLargest, options["density"], options["outliers"]),
        consensus=Elect(options["elect"], options["average"]),
    )


@merge_method(source="Model Breadcrumbs, arXiv 2312.06795, with TIES' elect and merge", stream=_stream_ties)
def breadcrumbs_ties(
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.9,
    outliers: Outliers = 0.01,
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
    scale: Scale = 1.0,
) -> Tensor:
    """Drop the largest γ of each task vector's entries, keep the next ρ, then elect a sign and merge what agrees.

    deltas (specialists, *shape), weights (specialists,) -> (*shape).
    """
    return scale * elect_and_merge(keep_largest(deltas, density, skip=outliers), weights, elect, average)
