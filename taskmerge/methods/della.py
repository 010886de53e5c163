"""DELLA: drop entries at random, small ones more often than large ones."""

from __future__ import annotations

from taskmerge.kernels.program import Elect, Program
from taskmerge.methods import pieces
from taskmerge.methods.options import (
    Average,
    ElectSign,
    Epsilon,
    KeepProbability,
    MergeWeights,
    Normalize,
    RescaleByOwn,
)
from taskmerge.methods.registry import merge_method


@merge_method(source="DELLA-Merging, arXiv 2406.11617")
def della_linear(
    weights: MergeWeights,
    *,
    density: KeepProbability = 0.5,
    epsilon: Epsilon = 0.1,
    rescale: RescaleByOwn = "own_probability",
    normalize: Normalize = False,
) -> Program:
    """Drop entries at random by their rank within the row, rescale each kept entry by its own probability, sum.

    The probability to be kept is linear in the rank by magnitude, ρ-ε to ρ+ε, clipped to [0, 1]. Rows run along the
    last axis; vectors and scalars are one row. Entries of equal magnitude share their mean rank; a row of one keeps
    with ρ.
    """
    return Program(pieces.shares(weights, normalize), pieces.drop_by_rank(density, epsilon, rescale))


@merge_method(source="DELLA-Merging, arXiv 2406.11617")
def della(
    weights: MergeWeights,
    *,
    density: KeepProbability = 0.5,
    epsilon: Epsilon = 0.1,
    rescale: RescaleByOwn = "own_probability",
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
) -> Program:
    """Drop entries at random by their rank within the row, then elect a sign and merge the entries that agree.

    Probabilities as in `della_linear`. At weight 0 a specialist has no part in the mean; with any other weight, however
    small, it alone decides the entries at which no other agrees.
    """
    return Program(weights, pieces.drop_by_rank(density, epsilon, rescale), Elect(elect, average))
