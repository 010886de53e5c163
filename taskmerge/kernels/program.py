"""What the kernels are told: one elementwise merge, fully resolved, without names of methods, files or recipes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class KeepLargest:
    """Keep, in each delta, the `max(1, floor(density * n))` entries of largest magnitude after the
    `floor(skip * n)` very largest; entries equal to the lower threshold are all kept (TIES trim; breadcrumbs).

    across: "tensor" thresholds each tensor by itself, "model" takes one threshold over all merged tensors.
    """

    density: float
    skip: float = 0.0
    across: Literal["tensor", "model"] = "tensor"

    def ranks(self, count: int) -> tuple[int, int]:
        """Of `count` entries by falling magnitude, counted from 1: the first and the last one kept. Kept is whatever
        has a magnitude between those two's, ties at both ends included."""
        skipped = math.floor(self.skip * count)
        kept = max(1, math.floor(self.density * count))
        return min(count, skipped + 1), min(count, skipped + kept)


@dataclass(frozen=True)
class DropRandom:
    """Keep each entry with probability `density` (DARE); survivors are divided by `density`
    (rescale "inverse_density"), or multiplied so that the delta's sum of magnitudes is kept ("l1"), or left."""

    density: float
    rescale: Literal["inverse_density", "l1", "none"] = "inverse_density"


@dataclass(frozen=True)
class DropByRank:
    """DELLA: rank |d| inside each row (last axis; vectors and scalars are one row); keep-probability rises
    linearly from density - epsilon (smallest) to density + epsilon (largest); survivors ÷ own probability.
    A one-element row keeps with `density`. Entries of equal magnitude share their mean rank (so nothing depends on a
    sort's tie order): with `less` entries below and `equal` ones of an entry's magnitude in its row of n, rank =
    less + (equal - 1) / 2 and p = density - epsilon + 2 epsilon rank / (n - 1), cut to [0, 1]."""

    density: float
    epsilon: float
    rescale: bool = True


@dataclass(frozen=True)
class Sum:
    """Σ w_i d_i."""


@dataclass(frozen=True)
class Elect:
    """TIES: elect a sign per entry, merge what agrees with it. A zero sum elects +.

    An entry d_i agrees if it is not zero and has the elected sign itself, whatever the sign of its weight. Where
    nothing agrees, or the divisor of the average is zero, the merged entry is zero.

    elect: "weighted_mass" sign(Σ w_i d_i), "mass" sign(Σ d_i), "count" sign(Σ sign(d_i)).
    average: "weight" Σ w d / Σ w over agreeing non-zero entries, "count" Σ w d / their number, "none" Σ w d.
    """

    elect: Literal["weighted_mass", "mass", "count"] = "weighted_mass"
    average: Literal["weight", "count", "none"] = "weight"


@dataclass(frozen=True)
class Largest:
    """MagMax: per entry the weighted delta of largest magnitude (first specialist on ties)."""


@dataclass(frozen=True)
class Active:
    """Consensus TA: m_i = |d_i| > theta * |Σ_{j≠i} d_j|; entries active in >= minimum specialists keep Σ w d (of all
    specialists), the others become zero."""

    theta: float
    minimum: int


Sparsify = KeepLargest | DropRandom | DropByRank
Consensus = Sum | Elect | Largest | Active


@dataclass(frozen=True)
class Program:
    """result = base_factor * base + scale * consensus(sparsify(d_i), weights), rounded once.

    Computed in float64; for float64 outputs (`kernels.exact`) without any rounding before the last.

    Where scale * consensus is zero the base's own sign of zero stays (so scale 0 gives the base bit for bit).

    weights: one per specialist, in order. base_factor: 1 except for plain weighted sums of models (`linear`). What was
    computed from the user's numbers is given as a fraction, exactly. sparsify: the same for all, or one per specialist,
    all of one kind, which `kernels.exact` alone streams.
    from_gram: when set, the measure pass computes the Gram matrix G[i, j] = <d_i, d_j> (float64, shape (T, T))
    of the whole tensor and this function returns the weights to use in place of `weights`
    (model stock, slerp, karcher, metagpt).
    """

    weights: tuple[float | Fraction, ...]
    scale: float = 1.0
    base_factor: float | Fraction = 1.0
    sparsify: Sparsify | tuple[Sparsify, ...] | None = None
    consensus: Consensus = field(default_factory=Sum)
    from_gram: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def measured(self) -> bool:
        """Whether passes over a tensor must come before it is combined."""
        how = self.sparsify_of(0) if self.weights else None
        scaled = isinstance(how, DropRandom) and how.rescale == "l1"
        return self.from_gram is not None or isinstance(how, KeepLargest) or scaled

    @property
    def random(self) -> bool:
        """Whether random bits decide."""
        return bool(self.weights) and isinstance(self.sparsify_of(0), (DropRandom, DropByRank))

    @property
    def each(self) -> bool:
        """Whether every specialist is sparsified in a way of its own."""
        return isinstance(self.sparsify, tuple)

    def sparsify_of(self, specialist: int) -> Sparsify | None:
        """How one specialist is sparsified."""
        return self.sparsify[specialist] if isinstance(self.sparsify, tuple) else self.sparsify
