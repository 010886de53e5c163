"""The combine pass into float64, and the sums of magnitudes that "l1" needs, without rounding in between."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from taskmerge.kernels.exact.agreement import agreement
from taskmerge.kernels.exact.expansions import Expansion, Scalar, nearest, quotient, two_sum
from taskmerge.kernels.exact.rational import merged, total
from taskmerge.kernels.exact.survivors import survivors, values_of
from taskmerge.kernels.exact.terms import Terms
from taskmerge.kernels.operands import Health, Measurement
from taskmerge.kernels.pairs import PIECE, Job, Pair, Piece, pieces_of
from taskmerge.kernels.program import Program
from taskmerge.kernels.threads import map_on_threads

_BLOCK = 1 << 13  # entries at a time: an array of them is 64 KiB, and all of them fit the second-level cache


@np.errstate(all="ignore")  # entries that are not finite, and overflow, which is never taken for certain
def combine(job: Job, program: Program) -> Health:
    """The job's merged entries into its `out`, float64."""
    values = values_of(job.piece)
    terms = Terms.of(program, job)
    if terms is None:
        job.out[:] = np.nan
    elif not terms.weights:
        job.out[:] = float(terms.base_factor) * values[0]
    else:
        kept = survivors(job.piece, values, program, job.found, job.keys)
        for start in range(0, job.piece.length, _BLOCK):
            block = slice(start, start + _BLOCK)
            job.out[block] = _merged([array[block] for array in values], [array[block] for array in kept], terms)
    return Health(sum(_nonfinite(array) for array in values), _nonfinite(job.out))


def _nonfinite(values: np.ndarray) -> int:
    return int(np.count_nonzero(~np.isfinite(values)))


def _merged(values: Sequence[np.ndarray], kept: Sequence[np.ndarray], terms: Terms) -> np.ndarray:
    """One block: values (base, then specialists) and kept, float64 (entries,) each -> float64 (entries,)."""
    base, *models = values
    agree = agreement([_seen(*row, base) for row in zip(models, kept, terms.rescaling, strict=True)], terms)
    divisors = [np.where(mask, divisor, 0.0) for mask, divisor in zip(agree, kept, strict=True)]
    result = Expansion()
    result.add_scaled(Scalar.of(terms.base_factor), Expansion([base]))
    deltas = [_delta(model, base, divisor) for model, divisor in zip(models, divisors, strict=True)]
    _add_move(result, deltas, [divisor != 0.0 for divisor in divisors], terms)
    out, certain = result.rounded()
    unmoved = base * float(terms.base_factor)
    out = np.where((out == 0.0) & (unmoved == 0.0), unmoved, out)  # an unmoved entry keeps the sign of its zero
    finite = np.logical_and.reduce([np.isfinite(array) for array in values])
    out = np.where(finite, out, sum(values))
    for place in np.flatnonzero(finite & ~certain):
        out[place] = merged(base[place], [model[place] for model in models], [row[place] for row in divisors], terms)
    return out


def _seen(
    model: np.ndarray, kept: np.ndarray, rescaling: tuple[float, float | Fraction], base: np.ndarray
) -> np.ndarray:
    """What survives of a delta, in float64: what decisions are made on."""
    divisor, factor = rescaling
    own = np.where(kept == 0.0, 1.0, kept)
    return np.where(kept != 0.0, (model - base) / own / divisor * nearest(Fraction(factor)), 0.0)


def _delta(model: np.ndarray, base: np.ndarray, divisor: np.ndarray) -> Expansion:
    """(model - base) / divisor where that is not 0, else 0."""
    high, low = two_sum(model, -base)
    difference = Expansion([high, low] if low.any() else [high])
    if ((divisor == 0.0) | (divisor == 1.0)).all():
        return difference.where(divisor != 0.0)
    return quotient(difference, Expansion([divisor]), divisor == 0.0)


def _add_move(result: Expansion, deltas: Sequence[Expansion], agree: Sequence[np.ndarray], terms: Terms) -> None:
    """Add the merged deltas, scaled, to the base."""
    moves, shares, common = terms.quotient
    move = Expansion()
    for factor, delta in zip(moves, deltas, strict=True):
        move.add_scaled(factor, delta)
    if shares:
        divisor = Expansion([np.zeros(agree[0].shape)])
        for share, mask in zip(shares, agree, strict=True):
            for number in share.parts:
                divisor.add(np.where(mask, number, 0.0))
            divisor.missing = divisor.missing + share.missing
        divisor.settle()
        move = quotient(move, divisor, divisor.parts[0] == 0.0)
    elif common.parts != (1.0,):
        move = quotient(move, Expansion([np.asarray(part) for part in common.parts], common.missing))
    for part in move.parts:
        result.add(part)
    result.missing = result.missing + move.missing


def rescale_factors(pair: Pair, program: Program, keys: Sequence[int]) -> tuple[Fraction, ...]:
    """Per specialist, Σ|d| over all entries / Σ|d| over the survivors; 1 where none survives. Entries that are not
    finite, which no output can be made of, are left out."""

    def masses(piece: Piece) -> list[tuple[Fraction, Fraction]]:
        values = values_of(piece)
        with np.errstate(all="ignore"):
            kept = survivors(piece, values, program, Measurement(), keys)
            return [_masses(values[0], model, mask != 0.0) for model, mask in zip(values[1:], kept, strict=True)]

    parts = map_on_threads(masses, pieces_of(pair, PIECE))
    sums = [[sum(column, Fraction(0)) for column in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
    return tuple(whole / left if left else Fraction(1) for whole, left in sums)


def _masses(base: np.ndarray, model: np.ndarray, kept: np.ndarray) -> tuple[Fraction, Fraction]:
    high, low = two_sum(model, -base)
    finite = np.isfinite(high) & np.isfinite(low)
    sign = np.sign(high)
    sizes = [np.where(finite, sign * part, 0.0) for part in (high, low)]
    whole, left = (sum((total(np.where(mask, size, 0.0)) for size in sizes), Fraction(0)) for mask in (True, kept))
    return whole, left
