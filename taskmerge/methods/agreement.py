"""Methods that decide entry by entry whose task vector counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from taskmerge.declarations import Between, Doc
from taskmerge.kernels.program import Active, Largest, Program
from taskmerge.methods.options import Scale
from taskmerge.methods.pieces import elect_and_merge, largest_entries, weighted, weighted_sum
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor


def _stream_largest(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(tuple(weights), options["scale"], consensus=Largest())


@merge_method(source="MagMax, arXiv 2407.06322", stream=_stream_largest)
def magmax(deltas: Tensor, weights: Tensor, *, scale: Scale = 1.0) -> Tensor:
    """Per entry the weighted delta of largest magnitude; the first specialist wins a tie.

    deltas (specialists, *shape), weights (specialists,) -> (*shape).
    """
    best = deltas.new_zeros(deltas.shape[1:])
    for delta in weighted(deltas, weights):
        best = delta.where(delta.abs() > best.abs(), best)
    return scale * best


def activity(deltas: Tensor, theta: float) -> Tensor:
    """TALL masks: where |d_i| > θ·|Σ_{j≠i} d_j|: (specialists, *shape), bool."""
    import torch

    masks = torch.zeros(deltas.shape, dtype=torch.bool, device=deltas.device)
    for index in range(deltas.shape[0]):
        others = deltas.new_zeros(deltas.shape[1:])
        for other in range(deltas.shape[0]):
            if other != index:
                others = others + deltas[other]
        masks[index] = deltas[index].abs() > theta * others.abs()
    return masks


def _stream_active(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    minimum = min(options["minimum"], len(weights))
    return Program(tuple(weights), options["scale"], consensus=Active(options["theta"], minimum))


@merge_method(source="Consensus TA (TALL masks), arXiv 2405.07813", stream=_stream_active)
def consensus(
    deltas: Tensor,
    weights: Tensor,
    *,
    theta: Annotated[float, Between(0, None), Doc("θ, how far an entry must stand out against the others' sum")] = 0.4,
    minimum: Annotated[int, Between(1, None), Doc("k, in how many specialists an entry must be active")] = 2,
    scale: Scale = 1.0,
) -> Tensor:
    """Keep the entries that matter to at least k specialists, then sum.

    An entry is active in specialist i where |d_i| > θ·|Σ_{j≠i} d_j|. With fewer than k specialists all must be active.

    deltas (specialists, *shape), weights (specialists,) -> (*shape).
    """
    enough = activity(deltas, theta).sum(dim=0) >= min(minimum, deltas.shape[0])
    return scale * weighted_sum(deltas, weights).where(enough, 0.0)


@merge_method(source="SCE (FuseChat), arXiv 2408.07990")
def sce(
    deltas: Tensor,
    weights: Tensor,
    *,
    select: Annotated[
        float, Between(0, 1, open="low"), Doc("τ, the share of entries kept, those that vary most across specialists")
    ] = 1.0,
    scale: Scale = 1.0,
) -> Tensor:
    """Select the entries of largest variance, weigh specialists by their mean square, erase minority signs.

    Weights are mean(d_i²) of the selected entries, in float64, times the specialist's own; agreeing entries are
    averaged by them. Entries as variable as the last one selected are selected too.

    deltas (specialists, *shape), weights (specialists,) -> (*shape).
    """
    variance = deltas.double().var(dim=0, correction=0)
    selected = deltas.where(largest_entries(variance.reshape(1, -1), select).reshape(variance.shape), 0.0)
    squares = selected.double().square().reshape(deltas.shape[0], -1)
    shares = squares.mean(dim=1)
    largest = shares.max()
    shares = weights.double() * (shares / largest.where(largest > 0, 1.0))
    return scale * elect_and_merge(selected, shares, "mass", "weight")


@merge_method(source="PCB-Merging, arXiv 2410.02396")
def pcb(
    deltas: Tensor,
    weights: Tensor,
    *,
    ratio: Annotated[
        float, Between(0, 1, open="low"), Doc("share of each task vector's entries that is kept, the best balanced")
    ] = 0.1,
    scale: Scale = 1.0,
) -> Tensor:
    """Weigh entries by how much they matter to their own task and how well they agree with the others.

    β = exp(T·minmax(|d_i|)²) · tanh(d_i·Σ_j d_j); per specialist the largest β are kept, and Σ β d / Σ β is the
    result. A negative β (an entry against the majority) is never kept. Not scale equivariant: tanh is not.

    deltas (specialists, *shape), weights (specialists,), which multiply the deltas first -> (*shape).
    """
    scaled = weighted(deltas, weights)
    flat = scaled.abs().reshape(deltas.shape[0], -1)
    low, high = flat.min(dim=1, keepdim=True).values, flat.max(dim=1, keepdim=True).values
    own = (deltas.shape[0] * ((flat - low) / (high - low).where(high > low, 1.0)).square()).exp()
    balance = own * (scaled * scaled.sum(dim=0)).tanh().reshape(flat.shape)
    balance = balance.where(largest_entries(balance, ratio) & (balance > 0), 0.0).reshape(deltas.shape)
    total = balance.sum(dim=0)
    return scale * ((balance * scaled).sum(dim=0) / total.where(total > 0, 1.0))


@merge_method(source="EMR-Merging, arXiv 2405.17461")
def emr(deltas: Tensor, weights: Tensor, *, scale: Scale = 1.0) -> Tensor:
    """EMR's unified task vector: the elected sign with the largest magnitude that agrees with it.

    `emr_masks` gives the 1-bit masks and scalars from which each specialist is restored.

    deltas (specialists, *shape), weights (specialists,), which multiply the deltas first -> (*shape).
    """
    scaled = weighted(deltas, weights)
    positive = weighted_sum(scaled, weights.new_ones(weights.shape)) >= 0
    sign = positive.to(scaled) * 2.0 - 1.0
    agreeing = scaled.abs().where((scaled > 0) == positive, 0.0)
    return scale * sign * agreeing.amax(dim=0)


def emr_masks(deltas: Tensor, unified: Tensor) -> tuple[Tensor, Tensor]:
    """What restores the specialists from EMR's unified task vector: d_i ≈ factors[i] · masks[i] · unified.

    deltas (specialists, *shape), unified (*shape) -> masks (specialists, *shape) bool, factors (specialists,) float64.
    """
    masks = deltas * unified > 0
    entries = deltas.double().abs().reshape(deltas.shape[0], -1).sum(dim=1)
    covered = (unified.double().abs() * masks).reshape(deltas.shape[0], -1).sum(dim=1)
    return masks, (entries / covered.where(covered > 0, 1.0)).where(covered > 0, 0.0)
