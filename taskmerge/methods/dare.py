"""DARE: drop entries at random and rescale the rest, then sum or merge as TIES does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskmerge.kernels.program import DropRandom, Elect, Program
from taskmerge.methods.options import Average, ElectSign, KeepProbability, Normalize, Rescale, Scale
from taskmerge.methods.pieces import (
    elect_and_merge,
    keep_random,
    normalized,
    normalized_values,
    sparsifying,
    weighted_sum,
)
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor


def _stream_linear(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        normalized_values(weights) if options["normalize"] else tuple(weights),
        options["scale"],
        sparsify=sparsifying(DropRandom, options["density"], options["rescale"]),
    )


@merge_method(source="DARE, arXiv 2311.03099", stream=_stream_linear)
def dare_linear(
    deltas: Tensor,
    weights: Tensor,
    random_bits: Tensor,
    *,
    density: KeepProbability = 0.5,
    rescale: Rescale = "inverse_density",
    normalize: Normalize = False,
    scale: Scale = 1.0,
) -> Tensor:
    """Drop entries of each task vector at random, rescale the survivors, sum.

    deltas, random_bits (specialists, *shape), weights (specialists,) -> (*shape). Which entries are dropped depends on
    seed, specialist, tensor and position alone.
    """
    kept = keep_random(deltas, random_bits, density, rescale)
    return scale * weighted_sum(kept, normalized(weights) if normalize else weights)


def _stream_ties(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        tuple(weights),
        options["scale"],
        sparsify=sparsifying(DropRandom, options["density"], options["rescale"]),
        consensus=Elect(options["elect"], options["average"]),
    )


@merge_method(source="DARE, arXiv 2311.03099, with TIES' elect and merge", stream=_stream_ties)
def dare_ties(
    deltas: Tensor,
    weights: Tensor,
    random_bits: Tensor,
    *,
    density: KeepProbability = 0.5,
    rescale: Rescale = "inverse_density",
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
    scale: Scale = 1.0,
) -> Tensor:
    """Drop entries of each task vector at random, rescale the survivors, then elect a sign and merge what agrees.

    deltas, random_bits (specialists, *shape), weights (specialists,) -> (*shape). mergekit's dare_ties does not
    divide by the weights: average "none" here.
    """
    kept = keep_random(deltas, random_bits, density, rescale)
    return scale * elect_and_merge(kept, weights, elect, average)
