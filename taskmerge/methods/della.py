"""DELLA: drop entries at random, small ones more often than large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from taskmerge.declarations import Between, Doc
from taskmerge.kernels.program import DropByRank, Elect, Program
from taskmerge.methods.options import Average, ElectSign, KeepProbability, Normalize, Scale
from taskmerge.methods.pieces import elect_and_merge, normalized, normalized_values, weighted_sum
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

Epsilon = Annotated[
    float, Between(0, 1), Doc("ε, by how much the smallest and the largest entry's probability differ from ρ")
]
RescaleByOwn = Annotated[bool, Doc("divide each surviving entry by its own probability")]


def keep_probabilities(deltas: Tensor, density: float, epsilon: float) -> Tensor:
    """How likely each entry is kept: linear in its rank by magnitude within its row, ρ-ε to ρ+ε, cut to [0, 1].

    Rows run along the last axis; vectors and scalars are one row. Entries of equal magnitude share their mean rank; a
    row of one keeps with ρ. deltas (specialists, *shape) -> (specialists, *shape), float64.
    """
    import torch

    length = deltas.shape[-1] if deltas.dim() > 1 else 1
    sizes = deltas.abs().float().reshape(-1, length).contiguous()
    if length == 1:
        return torch.full(deltas.shape, min(density, 1.0), dtype=torch.float64, device=deltas.device)
    ordered = sizes.sort(dim=1).values
    less = torch.searchsorted(ordered, sizes, right=False).double()
    not_more = torch.searchsorted(ordered, sizes, right=True).double()
    rank = less + (not_more - less - 1.0) / 2.0
    chance = density - epsilon + 2.0 * epsilon * rank / (length - 1)
    return chance.clamp(0.0, 1.0).reshape(deltas.shape)


def keep_by_rank(deltas: Tensor, random_bits: Tensor, density: float, epsilon: float, rescale: bool) -> Tensor:
    """Drop entries by `keep_probabilities`, divide survivors by their own: (specialists, *shape)."""
    chance = keep_probabilities(deltas, density, epsilon)
    kept = deltas.where(random_bits < (chance * 2.0**32).floor(), 0.0)
    return kept / chance.where(chance > 0, 1.0).to(deltas) if rescale else kept


def _stream_linear(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        normalized_values(weights) if options["normalize"] else tuple(weights),
        options["scale"],
        sparsify=DropByRank(options["density"], options["epsilon"], options["rescale"]),
    )


@merge_method(source="DELLA-Merging, arXiv 2406.11617", stream=_stream_linear)
def della_linear(
    deltas: Tensor,
    weights: Tensor,
    random_bits: Tensor,
    *,
    density: KeepProbability = 0.5,
    epsilon: Epsilon = 0.1,
    rescale: RescaleByOwn = True,
    normalize: Normalize = False,
    scale: Scale = 1.0,
) -> Tensor:
    """Drop entries at random by their rank within the row, rescale each survivor by its own probability, sum.

    deltas, random_bits (specialists, *shape), weights (specialists,) -> (*shape).
    """
    kept = keep_by_rank(deltas, random_bits, density, epsilon, rescale)
    return scale * weighted_sum(kept, normalized(weights) if normalize else weights)


def _stream(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        tuple(weights),
        options["scale"],
        sparsify=DropByRank(options["density"], options["epsilon"], options["rescale"]),
        consensus=Elect(options["elect"], options["average"]),
    )


@merge_method(source="DELLA-Merging, arXiv 2406.11617", stream=_stream)
def della(
    deltas: Tensor,
    weights: Tensor,
    random_bits: Tensor,
    *,
    density: KeepProbability = 0.5,
    epsilon: Epsilon = 0.1,
    rescale: RescaleByOwn = True,
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
    scale: Scale = 1.0,
) -> Tensor:
    """Drop entries at random by their rank within the row, then elect a sign and merge what agrees.

    deltas, random_bits (specialists, *shape), weights (specialists,) -> (*shape).
    """
    kept = keep_by_rank(deltas, random_bits, density, epsilon, rescale)
    return scale * elect_and_merge(kept, weights, elect, average)
