"""Methods that decide for each entry which task vector counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.kernels.program import Active, Largest, Program
from taskmerge.methods.footprint import held
from taskmerge.methods.options import MergeWeights
from taskmerge.methods.registry import merge_method
from taskmerge.methods.tensors import elect_and_merge, largest_entries, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="MagMax, arXiv 2407.06322")
def magmax(weights: MergeWeights) -> Program:
    """Select for each entry the weighted delta of largest magnitude; the first specialist wins a tie."""
    return Program(weights, consensus=Largest())


@merge_method(source="Consensus TA (TALL masks), arXiv 2405.07813")
def consensus(
    weights: MergeWeights,
    *,
    theta: Annotated[float, Between(0, None), Doc("θ, by how much an entry must exceed the sum of the others")] = 0.4,
    minimum: Annotated[int, Between(1, None), Doc("k, the number of specialists in which an entry must be active")] = 2,
) -> Program:
    """Keep the entries that matter to at least k specialists, then sum.

    An entry is active in specialist i where |d_i| > θ·|Σ_{j≠i} d_j|. With fewer than k specialists all must be active.
    """
    return Program(weights, consensus=Active(theta, min(minimum, len(weights))))


@merge_method(source="SCE (FuseChat), arXiv 2408.07990", memory=held(5, 0.5))
def sce(
    deltas: Tensor,
    weights: Tensor,
    *,
    select: Annotated[
        float, Between(0, 1, open="low"), Doc("τ, the share of entries kept: those that vary most across specialists")
    ] = 1.0,
) -> Tensor:
    """Select the entries of largest variance, weight specialists by their mean square, drop minority signs.

    Weights are mean(d_i²) of the selected entries times the specialist's own; agreeing entries are averaged by them.
    Entries as variable as the last one selected are selected too, and at least one is. Differs elsewhere: mergekit
    selects τ of the entries whose variance is not 0, none if that is less than one; has no user-defined weights; and
    gives all specialists the same weight if the mean squares add up to less than 1e-6.

    At weight 0 a specialist has no part in the mean; with any other weight, however small, it alone decides the entries
    at which no other agrees.

    deltas (specialists, *shape), weights (specialists,) -> (*shape), float64.
    """
    deltas = deltas.double()
    variance = deltas.var(dim=0, correction=0)
    selected = deltas.where(largest_entries(variance.reshape(1, -1), select).reshape(variance.shape), 0.0)
    shares = selected.square().reshape(deltas.shape[0], -1).mean(dim=1)
    largest = shares.max()
    shares = weights.to(deltas) * (shares / largest.where(largest > 0, 1.0))
    return elect_and_merge(selected, shares, "mass", "weight")


@merge_method(source="PCB-Merging, arXiv 2410.02396", memory=held(1, 10.3))
def pcb(
    deltas: Tensor,
    weights: Tensor,
    *,
    ratio: Annotated[
        float,
        Between(0, 1, open="low"),
        Doc("share of each task vector's entries that is kept: the best balanced ones"),
    ] = 0.1,
) -> Tensor:
    """Weight entries by their importance for their own task and their agreement with the others.

    β = exp(T·minmax(|d_i|)²) · tanh(d_i·Σ_j d_j); per specialist the largest β are kept, and Σ β d / Σ β is the
    result. A negative β (an entry against the majority) is never kept. T counts every specialist that has the tensor,
    including those of weight 0. Not scale equivariant: tanh is not. Differs elsewhere: the paper's code works on the
    whole model as one vector, not per tensor; clamps the largest and smallest 0.01 % of magnitudes; and uses the kept β
    as distances from the smallest of them, divided by their span.

    deltas (specialists, *shape), weights (specialists,), which multiply the deltas first -> (*shape), float64.
    """
    deltas = deltas.double()
    total = weighted_sum(deltas, weights)
    above, below = deltas.new_zeros(deltas.shape[1:]), deltas.new_zeros(deltas.shape[1:])
    for delta, weight in zip(deltas, weights.tolist(), strict=True):
        scaled = weight * delta
        sizes = scaled.abs()
        low, high = sizes.min(), sizes.max()
        own = (deltas.shape[0] * ((sizes - low) / (high - low).where(high > low, 1.0)).square()).exp()
        balance = own * (scaled * total).tanh()
        kept = largest_entries(balance.reshape(1, -1), ratio).reshape(balance.shape) & (balance > 0)
        balance = balance.where(kept, 0.0)
        above += balance * scaled
        below += balance
    return above / below.where(below > 0, 1.0)


Changed = Annotated[float, Between(0, None), Doc("ε, the magnitude above which an entry of a task vector counts")]


@merge_method(source="RAM (Reinforced Agent Merging), arXiv 2601.13572; mergekit's ram", memory=held(3, 3))
def ram(deltas: Tensor, weights: Tensor, *, above: Changed = 1e-5) -> Tensor:
    """Average each entry over the specialists that changed it: Σ w d / their number, where |d| > ε.

    An entry that only one specialist changed is kept in full; an entry that none changed keeps the base's value. A
    specialist of weight 0 counts where it changed an entry. Not scale equivariant. mergekit's has no weights.

    deltas (specialists, *shape), weights (specialists,) -> (*shape), float64.
    """
    changed = deltas.double().abs() > above
    return _over_changed(deltas.double(), weights, changed)


@merge_method(source="RAM+, arXiv 2601.13572; mergekit's ramplus_tl", memory=held(3, 4))
def ramplus_tl(
    deltas: Tensor,
    weights: Tensor,
    *,
    boost: Annotated[
        float, Between(0, None), Doc("r, how strongly entries that only one specialist changed are scaled up")
    ] = 0.1,
    most: Annotated[
        float, Between(0, None), Doc("α, the upper limit of the ratio of shared entries to entries of one specialist")
    ] = 0.2,
    above: Changed = 1e-5,
) -> Tensor:
    """Apply ram, but multiply entries that only one specialist changed by 1 + r · min(shared / sole, α).

    shared and sole are the numbers of a specialist's changed entries, in this tensor, that others changed too and that
    only it changed. This compensates for the loss by averaging of a specialist whose entries are mostly shared.

    deltas (specialists, *shape), weights (specialists,) -> (*shape), float64.
    """
    deltas = deltas.double()
    changed = deltas.abs() > above
    alone = changed.sum(dim=0) == 1
    each = changed.reshape(len(deltas), -1)
    sole = (each & alone.reshape(1, -1)).sum(dim=1)
    ratio = (each.sum(dim=1) - sole).double() / sole.clamp(min=1)
    factors = (1.0 + boost * ratio.clamp(max=most)).reshape(-1, *[1] * (deltas.dim() - 1))
    return _over_changed(deltas.where(~(changed & alone), deltas * factors), weights, changed)


def _over_changed(deltas: Tensor, weights: Tensor, changed: Tensor) -> Tensor:
    """Σ w d over the changed entries, divided by how many changed each."""
    return weighted_sum(deltas.where(changed, 0.0), weights) / changed.sum(dim=0).clamp(min=1)


@merge_method(source="EMR-Merging, arXiv 2405.17461", memory=held(1, 4.1))
def emr(deltas: Tensor, weights: Tensor) -> Tensor:
    """Compute EMR's unified task vector: the elected sign with the largest magnitude that agrees with it.

    `emr_masks` gives the 1-bit masks and scalars from which each specialist is restored.

    deltas (specialists, *shape), weights (specialists,), which multiply the deltas first -> (*shape), float64.
    """
    deltas = deltas.double()
    sign = (weighted_sum(deltas, weights) >= 0).to(deltas) * 2.0 - 1.0
    largest = deltas.new_zeros(deltas.shape[1:])
    for delta, weight in zip(deltas, weights.tolist(), strict=True):
        largest = largest.maximum(weight * delta * sign)
    return sign * largest


def emr_masks(deltas: Tensor, unified: Tensor) -> tuple[Tensor, Tensor]:
    """Compute masks and factors that restore specialists from EMR's task vector: d_i ≈ factors[i] · masks[i] · unified.

    deltas (specialists, *shape), unified (*shape) -> masks (specialists, *shape) bool, factors (specialists,) float64.
    """
    deltas, unified = deltas.double(), unified.double()
    masks = deltas * unified > 0
    entries = deltas.abs().reshape(deltas.shape[0], -1).sum(dim=1)
    covered = (unified.abs() * masks).reshape(deltas.shape[0], -1).sum(dim=1)
    return masks, (entries / covered.where(covered > 0, 1.0)).where(covered > 0, 0.0)
