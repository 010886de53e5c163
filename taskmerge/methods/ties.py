"""TIES: trim, elect a sign, merge what agrees with it."""

from __future__ import annotations

from taskmerge.kernels.program import Elect, Program
from taskmerge.methods import pieces
from taskmerge.methods.options import Average, Density, ElectSign, MergeWeights, Trim
from taskmerge.methods.registry import merge_method


@merge_method(source="TIES-Merging, arXiv 2306.01708")
def ties(
    weights: MergeWeights,
    *,
    density: Density = 0.2,
    trim: Trim = "tensor",
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
) -> Program:
    """Trim small entries, elect a sign per entry, average the entries that agree with it.

    Keeps the max(1, ⌊ρ·n⌋) entries of largest magnitude of each task vector (none at ρ = 0), with all entries equal to
    the threshold, so the result does not depend on a sort order. A zero sum elects +. Entries that were trimmed do not
    count in the mean. If entries vote by w d, a negative weight reverses a task vector before the vote.

    With trim "model", n counts the entries of all tensors that are merged with trim "model", with any weights, scale or
    density, and ρ gives one threshold for all of them. At weight 0 a specialist has no part in the mean; with any other
    weight it decides alone the entries at which no other specialist agrees, however small it is.
    Differs elsewhere: the paper's code trims over the complete model; mergekit trims per tensor and its
    `normalize: false` is average "none" here.
    """
    return Program(weights, pieces.trim(density, across=trim), Elect(elect, average))
