"""Survivors of each delta, decided on the float64 difference.

The magnitude is taken as float32, as in all kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskmerge.kernels.operands import Measurement
from taskmerge.kernels.pairs import Piece
from taskmerge.kernels.program import DropByRank, DropRandom, KeepLargest, Program, Sparsify
from taskmerge.numbers.randomness import keep_limit, uniform_bits
from taskmerge.numbers.rounding import decode


def values_of(piece: Piece) -> list[np.ndarray]:
    """Return the entries of every operand, the base's first: float64 (entries,)."""
    return [decode(operand.read(piece.start, piece.stop), operand.dtype) for operand in piece.pair.operands]


def origin_of(piece: Piece, specialist: int, base: np.ndarray) -> np.ndarray:
    """Return the values that a specialist's delta starts from: the base's, or zeros for a task vector."""
    return np.broadcast_to(0.0, base.shape) if piece.pair.specialists[specialist].is_delta else base


def survivors(
    piece: Piece, values: Sequence[np.ndarray], program: Program, found: Measurement, keys: Sequence[int]
) -> list[np.ndarray]:
    """Return the divisors of each specialist's survivors, float64 (entries,): 0 for an entry that is dropped.

    The divisor is 1, or the entry's own probability.
    """
    return [kept(piece, values, i, program.ways[i], found, keys) for i in range(len(values) - 1)]


def kept(
    piece: Piece, values: Sequence[np.ndarray], i: int, how: Sparsify | None, found: Measurement, keys: Sequence[int]
) -> np.ndarray:
    """Return the survivors of one specialist, as `survivors` does for all."""
    if isinstance(how, KeepLargest):
        assert found.lowest is not None and found.highest is not None
        sizes = _magnitudes(origin_of(piece, i, values[0]), values[i + 1])
        return ((sizes >= found.lowest[i]) & (sizes <= found.highest[i])).astype(np.float64)
    if isinstance(how, DropRandom):
        return (uniform_bits(keys[i], piece.start, piece.length) < keep_limit(how.density)).astype(np.float64)
    if isinstance(how, DropByRank):
        chance = _chances(piece, i, how)
        kept = uniform_bits(keys[i], piece.start, piece.length) < np.floor(chance * 2.0**32)
        return np.where(kept, chance if how.rescale == "own_probability" else 1.0, 0.0)
    return np.ones(piece.length)


def _magnitudes(origin: np.ndarray, model: np.ndarray) -> np.ndarray:
    return np.abs((model - origin).astype(np.float32))


def _chances(piece: Piece, specialist: int, drop: DropByRank) -> np.ndarray:
    """Keep-probabilities by mean rank within whole rows: float64 (entries,)."""
    whole, row = piece.widened_to_rows(), piece.pair.row
    whole = whole._replace(pair=piece.pair._replace(specialists=(piece.pair.specialists[specialist],)))
    base, model = values_of(whole)
    chance = np.full(whole.length, drop.density)
    if row > 1:
        sizes = _magnitudes(origin_of(whole, 0, base), model).reshape(-1, row)
        chance = drop.density - drop.epsilon + 2.0 * drop.epsilon * mean_ranks(sizes) / float(row - 1)
    return chance.clip(0.0, 1.0).ravel()[piece.start - whole.start :][: piece.length]


def mean_ranks(rows: np.ndarray) -> np.ndarray:
    """Rank from 0 of each entry in its row; equal ones share their mean. (rows, n) -> (rows, n), float64."""
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    place = np.arange(rows.shape[1])
    new = np.ones(rows.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = np.ones(rows.shape, bool)
    last[:, :-1] = new[:, 1:]
    first_place = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    last_place = np.minimum.accumulate(np.where(last, place, rows.shape[1])[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(rows.shape)
    np.put_along_axis(ranks, order, (first_place + last_place) / 2.0, axis=1)
    return ranks
