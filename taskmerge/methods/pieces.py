"""The pieces elementwise methods are composed of, with an option given once or once per specialist.

A method is an expression of these: `Program(weights, trim(density), Elect(elect, average))`. What they do is said in
`taskmerge.kernels.program`; nothing here computes on tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from taskmerge.errors import MergeError
from taskmerge.kernels.program import DropByRank, DropRandom, KeepLargest, Program, Sparsify
from taskmerge.methods.options import Each, MergeWeights

Sparsified = Sparsify | tuple[Sparsify, ...]


def trim(density: Each, *, skip: Each = 0.0, across: Literal["tensor", "model"] = "tensor") -> Sparsified:
    """Keep a share `density` of the largest entries, after the share `skip` of the very largest (TIES, breadcrumbs)."""
    return _each(KeepLargest, density, skip, across)


def drop(density: Each, rescale: str) -> Sparsified:
    """Keep each entry with probability `density` and rescale the survivors (DARE)."""
    return _each(DropRandom, density, rescale)


def drop_by_rank(density: Each, epsilon: Each, rescale: str) -> Sparsified:
    """Keep entries with a probability that rises with their rank, `density` ± `epsilon` (DELLA)."""
    return _each(DropByRank, density, epsilon, rescale)


def shares(weights: MergeWeights, normalize: bool = True) -> tuple[float | Fraction, ...]:
    """Return the weights, divided by their sum if `normalize` is set: exactly, as fractions.

    Raises MergeError when weights that are not zero sum to zero.
    """
    if not normalize:
        return tuple(weights)
    exact = [Fraction(weight) for weight in weights]
    if math.fsum(weights) == 0.0 and any(weights):
        shown = ", ".join(f"{float(weight):g}" for weight in weights)
        raise MergeError(
            f"the weights ({shown}) sum to 0, so they cannot be normalised",
            next_move="change a weight, or set normalize: false",
        )
    total = sum(exact) or 1
    return tuple(weight / total for weight in exact)


def mean(weights: MergeWeights) -> Program:
    """Return the Program of Σ w d / T, for tensors that methods of matrices cannot merge. T counts every specialist."""
    return Program(tuple(Fraction(weight) / len(weights) for weight in weights))


def _each(kind: Callable[..., Sparsify], *options: Any) -> Sparsified:
    """`kind(*options)`, or one per specialist where an option is given for each."""
    counts = {len(option) for option in options if isinstance(option, tuple)}
    if not counts:
        return kind(*options)
    if len(counts) > 1:
        raise MergeError(
            f"options for {' and '.join(map(str, sorted(counts)))} specialists at once",
            next_move="give one value per specialist for each option",
        )
    rows = [option if isinstance(option, tuple) else (option,) * min(counts) for option in options]
    return tuple(kind(*row) for row in zip(*rows, strict=True))
