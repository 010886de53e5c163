"""Methods that use only the small, or only the important, changes of a specialist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.methods.footprint import held
from taskmerge.methods.registry import merge_method
from taskmerge.methods.tensors import weighted, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="alchemonaut's NearSwap (QuartetAnemoi-70B); mergekit's nearswap", memory=held(2, 1))
def nearswap(
    deltas: Tensor,
    weights: Tensor,
    *,
    limit: Annotated[float, Between(0, None), Doc("t, the maximum change of an entry by a specialist")] = 1e-4,
) -> Tensor:
    """Move each entry towards the specialist by at most t: Σ clip(w d, -t, t).

    Where specialist and base differ by less than t, the result is the specialist's value. This is an interpolation by
    min(1, t / |d|) from the base. Not scale equivariant. mergekit's version uses one specialist and no weight.

    deltas (specialists, *shape), weights (specialists,), which multiply the deltas first -> (*shape), float64.
    """
    return weighted(deltas.double(), weights).clamp(-limit, limit).sum(dim=0)


@merge_method(source="mergekit's Arcee Fusion", memory=held(2, 5.1))
def arcee_fusion(deltas: Tensor, weights: Tensor, base: Tensor) -> Tensor:
    """Use only the important entries of each specialist: Σ w d over the entries of outstanding importance.

    Importance is |d| · KL(softmax x ‖ softmax b), the softmax over the last axis, x = b + d. Outstanding means at least
    median + 1.5 · (third - first quartile) of the tensor; the quantile q of n entries is the entry of rank ⌊q·(n-1)⌋,
    counted from 0. Each specialist is judged separately, independent of its weight. Not scale equivariant. mergekit's
    version uses one specialist and no weight.

    deltas (specialists, *shape), weights (specialists,), base (*shape) -> (*shape), float64.
    """
    import torch

    deltas, base = deltas.double(), base.double()
    kept = torch.stack([delta.where(_outstanding(_importance(delta, base)), 0.0) for delta in deltas])
    return weighted_sum(kept, weights)


def _importance(delta: Tensor, base: Tensor) -> Tensor:
    """|d| times the Kullback-Leibler divergence of its row: (*shape)."""
    rows = delta.reshape(1) if delta.dim() == 0 else delta
    before = base.reshape(rows.shape).log_softmax(dim=-1)
    after = (base.reshape(rows.shape) + rows).log_softmax(dim=-1)
    divergence = (after.exp() * (after - before)).sum(dim=-1, keepdim=True)
    return (rows.abs() * divergence).reshape(delta.shape)


def _outstanding(importance: Tensor) -> Tensor:
    """Where an entry reaches median + 1.5 interquartile ranges: (*shape), bool."""
    rising = importance.flatten().sort().values
    first, middle, third = (rising[int(share * (rising.numel() - 1))] for share in (0.25, 0.5, 0.75))
    return importance >= middle + 1.5 * (third - first)
