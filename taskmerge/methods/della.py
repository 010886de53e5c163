"""DELLA: drop entries at random, small ones more often than large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from taskmerge.declarations import Between, Doc, PerSpecialist
from taskmerge.kernels.program import DropByRank, Elect, Program, Sparsify
from taskmerge.methods.options import Average, Each, ElectSign, KeepProbability, Normalize, Scale
from taskmerge.methods.pieces import (
    elect_and_merge,
    normalized,
    normalized_values,
    per_specialist,
    same_magnitude,
    sparsifying,
    weighted_sum,
)
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

Epsilon = Annotated[
    Each,
    Between(0, 1),
    PerSpecialist(),
    Doc("ε, by how much the smallest and the largest entry's probability differ from ρ"),
]
RescaleByOwn = Annotated[
    Literal["own_probability", "l1", "none"],
    Doc(
        "what a survivor is multiplied by: one over its own probability, what restores the task vector's sum of "
        "magnitudes (as mergekit does), or nothing"
    ),
]


def keep_probabilities(deltas: Tensor, density: Each, epsilon: Each) -> Tensor:
    """How likely each entry is kept: linear in its rank by magnitude within its row, ρ-ε to ρ+ε, cut to [0, 1].

    Rows run along the last axis; vectors and scalars are one row. Entries of equal magnitude share their mean rank; a
    row of one keeps with ρ. deltas (specialists, *shape) -> (specialists, *shape), float64.
    """
    import torch

    length = deltas.shape[-1] if deltas.dim() > 1 else 1
    sizes = deltas.abs().float().reshape(-1, length).contiguous()
    if length == 1:
        return per_specialist(density, deltas).expand(deltas.shape)
    ordered = sizes.sort(dim=1).values
    less = torch.searchsorted(ordered, sizes, right=False).double()
    not_more = torch.searchsorted(ordered, sizes, right=True).double()
    rank = less + (not_more - less - 1.0) / 2.0
    rank, kept, half = rank.reshape(deltas.shape), per_specialist(density, deltas), per_specialist(epsilon, deltas)
    return (kept - half + 2.0 * half * rank / (length - 1)).clamp(0.0, 1.0)


def keep_by_rank(deltas: Tensor, random_bits: Tensor, density: Each, epsilon: Each, rescale: str) -> Tensor:
    """Drop entries by `keep_probabilities`, rescale the survivors: (specialists, *shape)."""
    chance = keep_probabilities(deltas, density, epsilon)
    kept = deltas.where(random_bits < (chance * 2.0**32).floor(), 0.0)
    if rescale == "l1":
        return same_magnitude(kept, deltas)
    return kept / chance.where(chance > 0, 1.0).to(deltas) if rescale == "own_probability" else kept


def _sparsify(options: Mapping[str, Any]) -> Sparsify | tuple[Sparsify, ...]:
    return sparsifying(DropByRank, options["density"], options["epsilon"], options["rescale"] == "own_probability")


def _stream_linear(weights: Sequence[float], options: Mapping[str, Any]) -> Program | None:
    if options["rescale"] == "l1":
        return None
    return Program(
        normalized_values(weights) if options["normalize"] else tuple(weights),
        options["scale"],
        sparsify=_sparsify(options),
    )


@merge_method(source="DELLA-Merging, arXiv 2406.11617", stream=_stream_linear)
def della_linear(
    deltas: Tensor,
    weights: Tensor,
    random_bits: Tensor,
    *,
    density: KeepProbability = 0.5,
    epsilon: Epsilon = 0.1,
    rescale: RescaleByOwn = "own_probability",
    normalize: Normalize = False,
    scale: Scale = 1.0,
) -> Tensor:
    """Drop entries at random by their rank within the row, rescale each survivor by its own probability, sum.

    deltas, random_bits (specialists, *shape), weights (specialists,) -> (*shape).
    """
    kept = keep_by_rank(deltas, random_bits, density, epsilon, rescale)
    return scale * weighted_sum(kept, normalized(weights) if normalize else weights)


def _stream(weights: Sequence[float], options: Mapping[str, Any]) -> Program | None:
    if options["rescale"] == "l1":
        return None
    return Program(
        tuple(weights),
        options["scale"],
        sparsify=_sparsify(options),
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
    rescale: RescaleByOwn = "own_probability",
    elect: ElectSign = "weighted_mass",
    average: Average = "weight",
    scale: Scale = 1.0,
) -> Tensor:
    """Drop entries at random by their rank within the row, then elect a sign and merge what agrees.

    deltas, random_bits (specialists, *shape), weights (specialists,) -> (*shape).
    """
    kept = keep_by_rank(deltas, random_bits, density, epsilon, rescale)
    return scale * elect_and_merge(kept, weights, elect, average)
