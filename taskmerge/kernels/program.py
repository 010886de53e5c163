"""The input of the kernels: one elementwise merge, fully resolved, without names of methods, files or recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class KeepLargest:
    """Keep, in each delta, the `max(1, floor(density * n))` entries of largest magnitude after the
    `floor(skip * n)` very largest, or as many fewer as leave so many to keep; entries equal to the lower threshold are
    all kept (TIES trim; breadcrumbs). A density of exactly 0 keeps nothing.

    across: "tensor" thresholds each tensor by itself, "model" takes one threshold over all merged tensors.
    """

    density: float
    skip: float = 0.0
    across: Literal["tensor", "model"] = "tensor"

    @property
    def nothing(self) -> bool:
        """True if no entry is kept, whatever the number of entries."""
        return self.density == 0.0

    def ranks(self, count: int) -> tuple[int, int]:
        """Return the ranks of the first and the last entry that is kept, of `count` entries.

        Entries are ranked by falling magnitude from 1. All entries with a magnitude between those two are kept, ties at
        both ends included.
        """
        kept = min(max(1, math.floor(self.density * count)), count)
        skipped = min(math.floor(self.skip * count), count - kept)
        return skipped + 1, skipped + kept


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
    less + (equal - 1) / 2 and p = density - epsilon + 2 epsilon rank / (n - 1), cut to [0, 1].

    rescale: survivors ÷ their own probability ("own_probability"), or multiplied so that the delta's sum of
    magnitudes is kept ("l1"), or left ("none")."""

    density: float
    epsilon: float
    rescale: Literal["own_probability", "l1", "none"] = "own_probability"


@dataclass(frozen=True)
class Sum:
    """Σ w_i d_i."""


@dataclass(frozen=True)
class Elect:
    """TIES: elect a sign per entry, merge what agrees with it. A zero sum elects +.

    An entry d_i agrees if it is not zero and has the elected sign, as it votes: where it votes by w_i d_i a negative
    weight turns it around. Where nothing agrees, or the divisor of the average is zero, the merged entry is zero.

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

    Args:
        weights: one per specialist, in order. What was computed from the user's numbers is given as a fraction.
        sparsify: what of a delta survives; the same for all, or one per specialist.
        consensus: how the survivors agree.
        scale: what their agreement is multiplied by.
        base: what becomes of the base's own entries: "added" as they are; "weighted" in a weighted sum of models,
            Σ w x = (Σ w) b + Σ w d, scaled around the base (see `base_factor`); "summed": the same, and a sum of
            models still where every weight is zero; "left_out": the result is the merged task vector itself.
        from_gram: when set, the measuring passes compute the Gram matrix of each tensor (float64, shape (T, T)) and
            this function returns the weights to use in place of `weights` (model stock, slerp, karcher, metagpt).
        gram_of: whose Gram matrix: <d_i, d_j> of the deltas, whole ones, not what is left of them, or <x_i, x_j> of
            the models x_i = b + d_i.
    """

    weights: tuple[float | Fraction, ...]
    sparsify: Sparsify | tuple[Sparsify, ...] | None = None
    consensus: Consensus = field(default_factory=Sum)
    scale: float = 1.0
    base: Literal["added", "weighted", "summed", "left_out"] = "added"
    from_gram: Callable[[np.ndarray], np.ndarray] | None = None
    gram_of: Literal["deltas", "models"] = "deltas"

    def base_factor(self, weights: Sequence[float | Fraction] | None = None) -> Fraction:
        """Return the exact factor of the base.

        For "weighted" and "summed" it is 1 + scale * (Σ w - 1); for "weighted" it is 1 where all of the program's own
        weights are zero: then there is no mean of models.

        Args:
            weights: the weights that hold, given or measured; None: the program's own. Finite.
        """
        holding = self.weights if weights is None else weights
        if self.base == "left_out":
            return Fraction(0)
        if self.base == "added" or (self.base == "weighted" and self.from_gram is None and not any(holding)):
            return Fraction(1)
        return 1 + Fraction(self.scale) * (sum((Fraction(weight) for weight in holding), Fraction(0)) - 1)

    @property
    def ways(self) -> tuple[Sparsify | None, ...]:
        """The sparsification of each specialist."""
        return self.sparsify if isinstance(self.sparsify, tuple) else (self.sparsify,) * len(self.weights)

    @property
    def measured(self) -> bool:
        """True if passes over a tensor or over the model must come before combining."""
        return self.from_gram is not None or any(isinstance(way, KeepLargest) or by_mass(way) for way in self.ways)

    @property
    def random(self) -> bool:
        """True if the result depends on random bits."""
        return any(isinstance(way, DropRandom | DropByRank) for way in self.ways)

    @property
    def ranked(self) -> bool:
        """True if ranks within rows decide, so that rows must be complete."""
        return any(isinstance(way, DropByRank) for way in self.ways)

    @property
    def across_model(self) -> bool:
        """True if thresholds are taken over the complete model (`kernels.measure_model`)."""
        return any(isinstance(way, KeepLargest) and way.across == "model" for way in self.ways)

    @property
    def idle(self) -> frozenset[int]:
        """Specialists of weight exactly 0 that cannot change the result, so that they need not be read.

        A weight of 0 still counts where the weights are measured, where every delta is a voter (`Active`, election by
        mass or count), and where agreeing specialists are counted (average "count").
        """
        how = self.consensus
        silent = isinstance(how, Sum | Largest) or (
            isinstance(how, Elect) and how.elect == "weighted_mass" and how.average in ("weight", "none")
        )
        if self.from_gram is not None or not silent:
            return frozenset()
        return frozenset(i for i, weight in enumerate(self.weights) if weight == 0)

    def without(self, specialists: Collection[int]) -> Program:
        """Return the program of the other specialists, in their order; see `idle`."""
        kept = [i for i in range(len(self.weights)) if i not in specialists]
        ways = tuple(self.sparsify[i] for i in kept) if isinstance(self.sparsify, tuple) else self.sparsify
        return replace(self, weights=tuple(self.weights[i] for i in kept), sparsify=ways)


def by_mass(way: Sparsify | None) -> bool:
    """Return whether survivors are rescaled to keep the delta's sum of magnitudes, which a pass measures."""
    return isinstance(way, DropRandom | DropByRank) and way.rescale == "l1"


def given_factor(way: Sparsify | None) -> float:
    """Return the factor of the survivors that needs no measurement: one over the density, rounded, or 1."""
    if isinstance(way, DropRandom) and way.rescale == "inverse_density" and way.density > 0.0:
        return 1.0 / way.density
    return 1.0
