"""DARE: drop entries at random and rescale the rest, then sum or merge as TIES does."""

from __future__ import annotations

from taskmerge.kernels.program import Elect, Program
from taskmerge.methods import pieces
from taskmerge.methods.options import Average, ElectSign, KeepProbability, MergeWeights, Normalize, Rescale
from taskmerge.methods.registry import merge_method


@merge_method(source="DARE, arXiv 2311.03099")
def dare_linear(
    weights: MergeWeights,
    *,
    density: KeepProbability = 0.5,
    rescale: Rescale = "inverse_density",
    normalize: Normalize = False,
) -> Program:
    """Drop entries of each task vector at random, rescale the kept entries, sum.

    The dropped entries depend only on seed, specialist, tensor and position.
    """
    return Program(pieces.shares(weights, normalize), pieces.drop(density, rescale))


@merge_method(source="DARE, arXiv 2311.03099, with TIES' elect and merge")
def dare_ties(
    weights: MergeWeights,
    *,
    density: KeepProbability = 0.5,
    rescale: Rescale = "inverse_density",
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
) -> Program:
    """Drop entries of each task vector at random, rescale the kept entries, then elect a sign and merge the entries
    that agree.

    At weight 0 a specialist has no part in the mean; with any other weight, however small, it alone decides the entries
    at which no other agrees.
    mergekit's dare_ties does not divide by the weights: average "none" here.
    """
    return Program(weights, pieces.drop(density, rescale), Elect(elect, average))
