"""Numbers wider than float64, entry by entry: sums of float64 parts, by error-free transformations.

TwoSum: Knuth. TwoProduct: Dekker 1971, with Veltkamp's splitting. Growing and renormalising sums of parts: Shewchuk
1997; Ogita, Rump, Oishi 2005. NumPy neither fuses nor reorders operations, which these depend on. Overflow makes NaN,
and NaN is never certain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

PARTS = 3  # 159 bits and more
_SPLITTER = 134217729.0  # 2^27 + 1
_SLACK = 1.01  # covers the rounding of bounds themselves
_SMALL_PRODUCT = 2.0**-960  # below this the error of a product may underflow, by less than
_UNDERFLOW = 2.0**-1060


class Scalar(NamedTuple):
    """A number: the sum of `parts`, give or take `missing`."""

    parts: tuple[float, ...]
    missing: float = 0.0

    @classmethod
    def of(cls, value: Fraction) -> Scalar:
        """Return the first PARTS floats of a fraction, largest first."""
        parts = []
        for _ in range(PARTS):
            if value == 0:
                break
            parts.append(nearest(value))
            if math.isinf(parts[-1]):
                return cls((math.inf,), math.inf)
            value -= Fraction(parts[-1])
        return cls(tuple(parts) or (0.0,), float(abs(value)) * _SLACK + _UNDERFLOW if value else 0.0)


def nearest(value: Fraction) -> float:
    """Return the nearest float64, ties to even (Python's own division of integers); infinite on overflow."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def two_sum(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first + second, rounded, and its exact error."""
    total = first + second
    seen = total - first
    return total, (first - (total - seen)) + (second - seen)


def _split(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of at most 26 bits, whose products are exact."""
    scaled = _SPLITTER * value
    high = scaled - (scaled - value)
    return high, value - high


def two_product(first: np.ndarray | float, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first · second, rounded, and its exact error, unless it underflows."""
    product = first * second
    high, low = _split(np.asarray(first))
    other_high, other_low = _split(second)
    return product, ((high * other_high - product) + high * other_low + low * other_high) + low * other_low


@dataclass
class Expansion:
    """Per entry a number: the exact sum of at most PARTS `parts`, arrays of one shape, give or take `missing`."""

    parts: list[np.ndarray] = field(default_factory=list)
    missing: np.ndarray | float = 0.0

    def add(self, term: np.ndarray) -> None:
        """Add an array."""
        for place, part in enumerate(self.parts):
            self.parts[place], term = two_sum(part, term)
        if len(self.parts) < PARTS:
            if not self.parts or term.any():
                self.parts.append(term)
        else:
            self.missing = self.missing + abs(term)

    def add_product(self, first: np.ndarray | float, second: np.ndarray) -> None:
        """Add the product of two arrays, or of a number and an array."""
        product, error = two_product(first, second)
        self.add(product)
        self.add(error)
        if (small := abs(product) < _SMALL_PRODUCT).any():
            small &= (second != 0.0) & np.asarray(np.asarray(first) != 0.0)
            self.missing = self.missing + np.where(small, _UNDERFLOW, 0.0)

    def add_scaled(self, factor: Scalar, other: Expansion) -> None:
        """Add a number times another expansion."""
        for part in other.parts:
            for number in factor.parts:
                self.add_product(number, part)
        if factor.missing or np.any(other.missing):
            size = sum(abs(part) for part in other.parts) + other.missing
            lost = factor.missing * size + sum(abs(number) for number in factor.parts) * other.missing
            inexact = (other.missing != 0.0) | ((size > 0.0) & (factor.missing != 0.0))
            self.missing = self.missing + np.where(inexact, lost * _SLACK + _UNDERFLOW, 0.0)

    def where(self, mask: np.ndarray) -> Expansion:
        """Zero outside the mask."""
        if mask.all():
            return self
        missing = np.where(mask, self.missing, 0.0) if np.any(self.missing) else 0.0
        return Expansion([np.where(mask, part, 0.0) for part in self.parts], missing)

    def settle(self) -> None:
        """Sort the parts of the sum by size: each is the nearest float64 to itself and all that follow."""
        for _ in range(len(self.parts) - 1):
            total = self.parts[-1]
            for place in range(len(self.parts) - 2, -1, -1):
                total, self.parts[place + 1] = two_sum(self.parts[place], total)
            self.parts[0] = total

    def rounded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest float64, ties to even, and a mask of the entries for which it is certain."""
        self.settle()
        none = np.zeros(self.parts[0].shape)
        high, low, rest = (*self.parts, none, none)[:PARTS]
        # Half-way between two floats by high and low alone: what is left decides (as in Python's math.fsum).
        beyond = high + 2.0 * low
        passes = (rest != 0.0) & (np.sign(low) == np.sign(rest)) & (beyond - high == 2.0 * low)
        towards = np.copysign(np.inf, np.where(low != 0.0, low, np.where(rest != 0.0, rest, -high)))
        room = 0.5 * abs(np.nextafter(high, towards) - high) - abs(low)
        clear = (np.asarray(self.missing) == 0.0) | (room > 2.0 * (abs(rest) + self.missing))
        return np.where(passes, beyond, high), (high + low == high) & (low + rest == low) & clear


def quotient(top: Expansion, bottom: Expansion, zero: np.ndarray | bool = False) -> Expansion:
    """Compute top / bottom by long division; 0 where `zero`, and only there bottom may be 0."""
    bottom.settle()
    first, *others = bottom.parts
    first = np.where(zero, 1.0, first)
    rest = Expansion([np.where(zero, 0.0, part) for part in top.parts], np.where(zero, 0.0, top.missing))
    result = Expansion()
    for _ in range(PARTS):
        rest.settle()
        digit = rest.parts[0] / first
        result.add(digit)
        for part in (first, *others):
            rest.add_product(-digit, np.asarray(part))
    bound = sum(abs(part) for part in rest.parts) + rest.missing
    unsure = sum((abs(part) for part in others), np.zeros(np.shape(first))) > abs(first) * 2.0**-40
    bound = np.where(unsure | (np.asarray(bottom.missing) != 0.0), np.inf, bound * _SLACK / abs(first))
    result.missing = result.missing + np.where(rest_is_zero(rest), 0.0, bound + _UNDERFLOW)
    return result


def rest_is_zero(rest: Expansion) -> np.ndarray:
    """Return a mask of the entries whose remainder is zero and complete."""
    return np.logical_and.reduce([part == 0.0 for part in rest.parts]) & (np.asarray(rest.missing) == 0.0)


def scaled_alike(values: Sequence[Fraction]) -> tuple[list[Scalar], Fraction]:
    """Return the values times one factor in [1, 2), and the factor.

    If possible, each scaled value is exactly the sum of PARTS floats.
    """
    factor = math.lcm(*(value.denominator // (value.denominator & -value.denominator) for value in values))
    scale = Fraction(factor, 1 << (factor.bit_length() - 1))
    scalars = [Scalar.of(value * scale) for value in values]
    if any(scalar.missing for scalar in scalars):
        return [Scalar.of(value) for value in values], Fraction(1)
    return scalars, scale
