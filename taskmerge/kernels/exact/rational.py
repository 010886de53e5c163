"""One entry in fractions, straight from the formula (slow: for what wider floats leave open); exact sums."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from taskmerge.kernels.exact.expansions import nearest
from taskmerge.kernels.exact.terms import Terms


def merged(
    base: float, models: Sequence[float], origins: Sequence[float], divisors: Sequence[float], terms: Terms
) -> float:
    """Return the merged entry, rounded once.

    origins: the value that each model's delta starts from. divisors: divisor of each delta, 0 if the consensus leaves
    it out.
    """
    move, below = Fraction(0), Fraction(0) if terms.shares else Fraction(1)
    for i, (model, origin, divisor) in enumerate(zip(models, origins, divisors, strict=True)):
        if divisor:
            move += terms.weights[i] * terms.factors[i] * (Fraction(model) - Fraction(origin)) / Fraction(divisor)
            below += terms.shares[i] if terms.shares else 0
    start = terms.base_factor * Fraction(base) if terms.base_factor else Fraction(0)
    return nearest(start + (terms.scale * move / below if below else 0))


def total(values: np.ndarray) -> Fraction:
    """Compute the exact sum of fewer than 2^26 finite float64 values."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53)
    high = np.floor(whole * 2.0**-27)
    least = int(exponents.min(initial=0))
    sums = [np.bincount(exponents - least, half) for half in (high, whole - high * 2.0**27)]
    numbers = [(int(top) << 27) + int(low) for top, low in zip(*sums, strict=True)]
    return sum((number << place for place, number in enumerate(numbers)), 0) * Fraction(2) ** (least - 53)
