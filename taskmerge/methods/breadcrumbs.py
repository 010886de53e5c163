"""Model Breadcrumbs: drop the outliers and the small entries of each task vector, keep those between."""

from __future__ import annotations

from taskmerge.kernels.program import Elect, Program
from taskmerge.methods import pieces
from taskmerge.methods.options import Average, Density, ElectSign, MergeWeights, Normalize, Outliers
from taskmerge.methods.registry import merge_method


@merge_method(source="Model Breadcrumbs, arXiv 2312.06795")
def breadcrumbs(
    weights: MergeWeights, *, density: Density = 0.9, outliers: Outliers = 0.01, normalize: Normalize = False
) -> Program:
    """Drop the largest γ of each task vector's entries, keep the next ρ, sum.

    max(1, ⌊ρ·n⌋) entries are kept (none at ρ = 0) and ⌊γ·n⌋ skipped, or fewer if not enough would be left; equal
    magnitudes are kept together.
    """
    return Program(pieces.shares(weights, normalize), pieces.trim(density, skip=outliers))


@merge_method(source="Model Breadcrumbs, arXiv 2312.06795, with TIES' elect and merge")
def breadcrumbs_ties(
    weights: MergeWeights,
    *,
    density: Density = 0.9,
    outliers: Outliers = 0.01,
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
) -> Program:
    """Drop the largest γ of each task vector's entries, keep the next ρ, then elect a sign and merge the entries that
    agree.

    At weight 0 a specialist has no part in the mean; with any other weight, however small, it alone decides the entries
    at which no other agrees.
    """
    return Program(weights, pieces.trim(density, skip=outliers), Elect(elect, average))
