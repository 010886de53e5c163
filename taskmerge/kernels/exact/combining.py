"""The combine pass into float64, and the sums of magnitudes that "l1" needs, without rounding in between."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from taskmerge.kernels.exact.agreement import agreement
from taskmerge.kernels.exact.expansions import Expansion, Scalar, nearest, quotient, two_sum
from taskmerge.kernels.exact.rational import merged, total
from taskmerge.kernels.exact.survivors import kept, origin_of, survivors, values_of
from taskmerge.kernels.exact.terms import Terms
from taskmerge.kernels.operands import Health, Measurement
from taskmerge.kernels.pairs import PIECE, Job, Pair, Piece, pieces_of
from taskmerge.kernels.program import Program, Sparsify, by_mass
from taskmerge.kernels.threads import map_on_threads

_BLOCK = 1 << 13  # entries at a time: an array of them is 64 KiB, and all of them fit the second-level cache


@np.errstate(all="ignore")  # entries that are not finite, and overflow, which is never taken for certain
def combine(job: Job, program: Program) -> Health:
    """Write the job's merged entries into its `out`, float64."""
    values = values_of(job.piece)
    terms = Terms.of(program, job)
    if terms is None:
        job.out[:] = np.nan
    elif not terms.weights:
        job.out[:] = 0.0 if terms.base_left_out else float(terms.base_factor) * values[0]
    else:
        left = survivors(job.piece, values, program, job.measured, job.keys)
        origins = [origin_of(job.piece, i, values[0]) for i in range(len(left))]
        for start in range(0, job.piece.length, _BLOCK):
            block = slice(start, start + _BLOCK)
            rows = _at(values, block), _at(origins, block), _at(left, block)
            job.out[block] = _merged(*rows, terms)
    return Health(sum(_nonfinite(array) for array in values), _nonfinite(job.out))


def _nonfinite(values: np.ndarray) -> int:
    return int(np.count_nonzero(~np.isfinite(values)))


def _at(arrays: Sequence[np.ndarray], where: Any) -> list[Any]:
    """The same entries, or the same entry, of each."""
    return [array[where] for array in arrays]


def _merged(
    values: Sequence[np.ndarray], origins: Sequence[np.ndarray], kept: Sequence[np.ndarray], terms: Terms
) -> np.ndarray:
    """One block: values (base, then specialists), what deltas are taken from, and kept, float64 (entries,) each ->
    float64 (entries,)."""
    base, *models = values
    rows = list(zip(models, origins, kept, strict=True))
    seen = [_seen(*row, rescaling) for row, rescaling in zip(rows, terms.rescaling, strict=True)]
    divisors = [np.where(mask, divisor, 0.0) for mask, divisor in zip(agreement(seen, terms), kept, strict=True)]
    result = Expansion()
    if not terms.base_left_out:
        result.add_scaled(Scalar.of(terms.base_factor), Expansion([base]))
    deltas = [_delta(model, origin, divisor) for (model, origin, _), divisor in zip(rows, divisors, strict=True)]
    _add_move(result, deltas, [divisor != 0.0 for divisor in divisors], terms)
    out, certain = result.rounded()
    # An unmoved entry keeps the sign of the base's zero.
    unmoved = np.broadcast_to(0.0, base.shape) if terms.base_left_out else base * float(terms.base_factor)
    out = np.where((out == 0.0) & (unmoved == 0.0), unmoved, out)
    used = [*models, *(-origin for origin in origins)] if terms.base_left_out else values
    finite = np.logical_and.reduce([np.isfinite(array) for array in used])
    out = np.where(finite, out, sum(used))
    for place in np.flatnonzero(finite & ~certain):
        numbers = _at(models, place), _at(origins, place), _at(divisors, place)
        out[place] = merged(base[place], *numbers, terms)
    return out


def _seen(
    model: np.ndarray, origin: np.ndarray, kept: np.ndarray, rescaling: tuple[float, float | Fraction]
) -> np.ndarray:
    """What survives of a delta, in float64: what decisions are made on."""
    divisor, factor = rescaling
    own = np.where(kept == 0.0, 1.0, kept)
    return np.where(kept != 0.0, (model - origin) / own / divisor * nearest(Fraction(factor)), 0.0)


def _delta(model: np.ndarray, origin: np.ndarray, divisor: np.ndarray) -> Expansion:
    """(model - origin) / divisor where that is not 0, else 0."""
    high, low = two_sum(model, -origin)
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
    """Compute Σ|d| over all entries / Σ|d| over the survivors of a specialist's random drop, one per specialist.

    It is 1 if no entry survives, and for specialists that are sparsified otherwise. Entries that are not finite are
    left out, because no output can be made of them.
    """

    def masses(piece: Piece) -> list[tuple[Fraction, Fraction]]:
        values = values_of(piece)
        with np.errstate(all="ignore"):
            return [_masses(piece, values, i, way, keys) for i, way in enumerate(program.ways)]

    parts = map_on_threads(masses, pieces_of(pair, PIECE))
    if not parts:
        return (Fraction(1),) * len(program.ways)
    sums = [[sum(column, Fraction(0)) for column in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
    return tuple(whole / left if left else Fraction(1) for whole, left in sums)


def _masses(
    piece: Piece, values: Sequence[np.ndarray], specialist: int, way: Sparsify | None, keys: Sequence[int]
) -> tuple[Fraction, Fraction]:
    if not by_mass(way):
        return Fraction(0), Fraction(0)
    mask = kept(piece, values, specialist, way, Measurement(), keys) != 0.0
    high, low = two_sum(values[specialist + 1], -origin_of(piece, specialist, values[0]))
    finite = np.isfinite(high) & np.isfinite(low)
    sign = np.sign(high)
    sizes = [np.where(finite, sign * part, 0.0) for part in (high, low)]
    whole, left = (sum((total(np.where(taken, size, 0.0)) for size in sizes), Fraction(0)) for taken in (True, mask))
    return whole, left
