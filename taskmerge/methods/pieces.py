"""The pieces elementwise methods are made of: what of a delta survives, and how the survivors agree.

deltas: (specialists, *shape), weights: (specialists,), on one device. Sums run over the specialists in their order,
as the kernels' do. Magnitudes are compared as float32, entries equal to a threshold all kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from taskmerge.errors import MergeError
from taskmerge.kernels.program import Program, Sparsify, Sum
from taskmerge.methods.options import Each

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(deltas: Tensor, weights: Tensor) -> Tensor:
    """Σ w_i d_i: (*shape)."""
    total = deltas.new_zeros(deltas.shape[1:])
    for delta, weight in zip(deltas, weights.to(deltas), strict=True):
        total = total + weight * delta
    return total


def weighted(deltas: Tensor, weights: Tensor) -> Tensor:
    """w_i d_i: (specialists, *shape)."""
    return deltas * weights.to(deltas).reshape(-1, *[1] * (deltas.dim() - 1))


def weight_sum(weights: Sequence[float]) -> float:
    """Σ w_i, to divide by. Raises MergeError when it is zero although weights are not."""
    total = math.fsum(weights)
    if total == 0.0 and any(weights):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise MergeError(
            f"the weights ({shown}) sum to 0, so they cannot be normalised",
            next_move="change a weight, or set normalize: false",
        )
    return total


def normalized(weights: Tensor) -> Tensor:
    """w_i / Σ w_i, float64; zeros stay zeros. Raises MergeError when non-zero weights sum to zero."""
    return weights.double() / (weight_sum(weights.tolist()) or 1.0)


def normalized_values(weights: Sequence[float]) -> tuple[Fraction, ...]:
    """As `normalized`, for plain numbers, exactly."""
    weight_sum(weights)
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact) or 1
    return tuple(weight / total for weight in exact)


def sparsifying(kind: Callable[..., Sparsify], *options: Any) -> Sparsify | tuple[Sparsify, ...]:
    """`kind(*options)`, or one per specialist where an option is given for each."""
    given = [option for option in options if isinstance(option, tuple)]
    if not given:
        return kind(*options)
    rows = [option if isinstance(option, tuple) else (option,) * len(given[0]) for option in options]
    return tuple(kind(*row) for row in zip(*rows, strict=True))


def weighted_mean(deltas: Tensor, weights: Tensor) -> Tensor:
    """Σ w_i d_i / T, what whole-matrix methods do with tensors that are no matrices: (*shape)."""
    return weighted_sum(deltas, weights) / deltas.shape[0]


def mean_program(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    """`weighted_mean`, streamed."""
    shares = tuple(Fraction(weight) / len(weights) for weight in weights)
    return Program(shares, options.get("scale", 1.0), consensus=Sum())


def magnitudes(deltas: Tensor) -> Tensor:
    """|d| as it is compared: (specialists, entries), float32."""
    return deltas.abs().float().reshape(deltas.shape[0], -1)


def per_specialist(value: Each, deltas: Tensor) -> Tensor:
    """A number, or one per specialist, shaped to go with deltas: (specialists, 1, …), float64."""
    import torch

    given = value if isinstance(value, tuple) else (value,) * deltas.shape[0]
    if len(given) != deltas.shape[0]:
        raise MergeError(f"{len(given)} numbers for {deltas.shape[0]} specialists")
    return torch.tensor(given, dtype=torch.float64, device=deltas.device).reshape(-1, *[1] * (deltas.dim() - 1))


def keep_largest(deltas: Tensor, density: Each, skip: Each = 0.0, thresholds: Tensor | None = None) -> Tensor:
    """Keep, per delta, the max(1, ⌊density·n⌋) entries of largest magnitude after the ⌊skip·n⌋ very largest.

    thresholds: (specialists,) least magnitude kept, in place of density. Zeros elsewhere: (specialists, *shape).
    """
    sizes = magnitudes(deltas)
    count = sizes.shape[1]
    if thresholds is not None:
        keep = sizes >= thresholds.float().reshape(-1, 1)
        return deltas.where(keep.reshape(deltas.shape), 0.0)
    ordered = sizes.sort(dim=1, descending=True).values
    keep = sizes.new_zeros(sizes.shape).bool()
    shares = zip(per_specialist(density, sizes).flatten(), per_specialist(skip, sizes).flatten(), strict=True)
    for index, (share, over) in enumerate(shares):
        skipped = min(math.floor(over.item() * count), count - 1)
        last = min(skipped + max(1, math.floor(share.item() * count)), count) - 1
        keep[index] = (sizes[index] <= ordered[index, skipped]) & (sizes[index] >= ordered[index, last])
    return deltas.where(keep.reshape(deltas.shape), 0.0)


def same_magnitude(kept: Tensor, deltas: Tensor) -> Tensor:
    """What is left of each delta, multiplied so that its sum of magnitudes is the whole delta's."""
    entries = tuple(range(1, deltas.dim()))
    total, left = deltas.abs(), kept.abs()
    if entries:
        total, left = total.sum(entries, keepdim=True), left.sum(entries, keepdim=True)
    return kept * (total / left.where(left > 0, 1.0))


def keep_random(deltas: Tensor, random_bits: Tensor, density: Each, rescale: str) -> Tensor:
    """DARE: keep each entry whose bits lie below ⌊density·2^32⌋, rescale the survivors."""
    chance = per_specialist(density, deltas)
    kept = deltas.where(random_bits < (chance * 2.0**32).floor(), 0.0)
    if rescale == "l1":
        return same_magnitude(kept, deltas)
    return kept / chance.to(deltas) if rescale == "inverse_density" else kept


def elect_and_merge(deltas: Tensor, weights: Tensor, elect: str, average: str) -> Tensor:
    """TIES: elect a sign per entry (a zero sum elects +), merge the non-zero entries that agree with it: (*shape)."""
    if elect == "weighted_mass":
        votes = weighted_sum(deltas, weights)
    else:
        ballots = deltas if elect == "mass" else deltas.sign()
        votes = weighted_sum(ballots, weights.new_ones(weights.shape))
    agrees = (deltas != 0) & ((deltas > 0) == (votes >= 0))
    total = weighted_sum(deltas.where(agrees, 0.0), weights)
    if average == "none":
        return total
    shares = weights if average == "weight" else weights.new_ones(weights.shape)
    divisor = weighted_sum(agrees.to(deltas), shares)
    return (total / divisor.where(divisor != 0, 1.0)).where(divisor != 0, 0.0)


def largest_entries(values: Tensor, share: float) -> Tensor:
    """Where each row holds one of its max(1, ⌊share·n⌋) largest values, ties all counted: (rows, n), bool."""
    count = values.shape[1]
    last = min(max(1, math.floor(share * count)), count)
    return values >= values.sort(dim=1, descending=True).values[:, last - 1 : last]
