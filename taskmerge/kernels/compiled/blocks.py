"""Loops over one block of float64 deltas, in the first-level cache: what survives, and how the survivors agree.

rows: (specialists, BLOCK) float64. Every loop is elementwise and plain: LLVM vectorises it. What helps it: loads before
the choice that uses them, and never `row[j] = row[j] if … else 0`, which becomes a masked store, ten times as slow on
some processors. Up to _FEW specialists are looped over inside of the entries, their number known to the compiler: it
unrolls them and keeps sums in registers.
"""

from __future__ import annotations

import numpy as np

from taskmerge.kernels.compiled.codes import BY_NOTHING, BY_WEIGHT, COUNT, WEIGHTED_MASS
from taskmerge.kernels.compiled.inner import array_at, inlined, inner
from taskmerge.kernels.pairs import BLOCK
from taskmerge.numbers.randomness import FIRST_FACTOR, GOLDEN, SECOND_FACTOR

_GOLDEN = np.uint64(GOLDEN)
_FIRST = np.uint64(FIRST_FACTOR)
_SECOND = np.uint64(SECOND_FACTOR)
_FEW = 4
WORDS = BLOCK // 4 + 1  # outputs of SplitMix64 for a block, which may start within one
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_TOP_OF_16 = np.uint16(0x8000)
_ONE, _TWO, _THREE, _SIXTEEN, _LOW = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(16), np.uint64(0xFFFF)


@inner
def random_halves(key: np.uint64, first: np.uint64, count: int, words_at: int) -> int:
    """Return the address of the upper halves of `randomness.uniform_bits` for elements [first, first + count), uint16.

    They are computed in `words`, uint64 (WORDS,). The state is counted up, because 64-bit products are expensive.
    """
    words = array_at(words_at, (WORDS,), np.uint64)
    state = key + ((first >> _TWO) + _ONE) * _GOLDEN
    for j in range((count + 3) // 4 + 1):
        words[j] = mixed(state)
        state += _GOLDEN
    offset = int(np.int64(first & _THREE))  # of signed ones: int64 + uint64 would be float64
    return words_at + 2 * offset


@inlined
def random_half(key: np.uint64, index: np.uint64) -> np.uint16:
    """Return the upper half of `randomness.uniform_bits` for one element."""
    return np.uint16(mixed(key + ((index >> _TWO) + _ONE) * _GOLDEN) >> (_SIXTEEN * (index & _THREE)))


@inlined
def mixed(z: np.uint64) -> np.uint64:
    """Return the output of SplitMix64 for a state."""
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@inner
def keep_between(delta: np.ndarray, count: int, low: float, high: float, out: np.ndarray) -> None:
    """Write the entries with a magnitude in [low, high], and zeros for the others."""
    for j in range(count):
        value = delta[j]
        magnitude = abs(value)
        out[j] = value if (magnitude >= low) & (magnitude <= high) else 0.0


@inner
def drop_random(
    delta: np.ndarray,
    count: int,
    key: np.uint64,
    start: np.uint64,
    limit: np.uint64,
    factor: float,
    words_at: int,
    out: np.ndarray,
) -> None:
    """Write zeros where the random bits reach `limit`, and the other entries x `factor`. words: uint64 (WORDS,)."""
    halves = array_at(random_halves(key, start, count, words_at), (count,), np.uint16)
    upper, lower = np.int32(limit >> _SIXTEEN), np.uint16(limit & _LOW)
    for j in range(count):
        value = delta[j] * factor
        out[j] = value if np.int32(halves[j]) < upper else 0.0
    if lower == 0:
        return
    nearest = np.uint16(0xFFFF)
    for j in range(count):
        nearest = min(nearest, np.uint16(halves[j] ^ np.uint16(upper)))
    if nearest == 0:  # one entry in 65,536 is decided by its lower half
        for j in range(count):
            if np.int32(halves[j]) == upper and random_half(~key, start + np.uint64(j)) < lower:
                out[j] = delta[j] * factor


@inner
def drop_by_chance(
    delta: np.ndarray,
    count: int,
    key: np.uint64,
    start: np.uint64,
    chances: np.ndarray,
    rescale: bool,
    factor: float,
    words_at: int,
    out: np.ndarray,
) -> None:
    """Keep each entry with its own probability; survivors ÷ it where they are rescaled, and x `factor`.
    words: uint64 (2 * WORDS,)."""
    upper = array_at(random_halves(key, start, count, words_at), (count,), np.uint16)
    lower = array_at(random_halves(~key, start, count, words_at + 8 * WORDS), (count,), np.uint16)
    for j in range(count):
        chance = chances[j]
        # As signed, which turns into float64 in one instruction; whole numbers below 2^53: exact.
        bits = np.int32(np.uint32(np.uint32(upper[j] ^ _TOP_OF_16) << np.uint32(16)) | np.uint32(lower[j]))
        kept = np.float64(bits) < np.floor(chance * 4294967296.0) - 2147483648.0
        divisor = chance if rescale & (chance > 0.0) else 1.0
        value = delta[j] / divisor * factor
        out[j] = value if kept else 0.0


@inner
def weighted_sum(rows: np.ndarray, count: int, weights: np.ndarray, total: np.ndarray) -> None:
    """Write Σ w_i d_i into `total`, added in the specialists' order."""
    specialists = rows.shape[0]
    if specialists == 0:
        for j in range(count):
            total[j] = 0.0
    elif specialists == 1:
        _sum_first(np.int64(1), rows, count, weights, total)
    elif specialists == 2:
        _sum_first(np.int64(2), rows, count, weights, total)
    elif specialists == 3:
        _sum_first(np.int64(3), rows, count, weights, total)
    else:
        _sum_first(np.int64(4), rows, count, weights, total)
    for i in range(_FEW, specialists):
        row, weight = rows[i], weights[i]
        for j in range(count):
            total[j] += weight * row[j]


@inlined
def _sum_first(few: int, rows: np.ndarray, count: int, weights: np.ndarray, total: np.ndarray) -> None:
    for j in range(count):
        value = weights[0] * rows[0, j]
        for i in range(1, few):
            value += weights[i] * rows[i, j]
        total[j] = value


@inner
def elect(
    rows: np.ndarray, count: int, weights: np.ndarray, vote: int, average: int, scratch: np.ndarray, total: np.ndarray
) -> None:
    """TIES' election and disjoint merge into `total`. scratch: (2, BLOCK) float64."""
    specialists = rows.shape[0]
    if vote != WEIGHTED_MASS or specialists == 0 or specialists > _FEW:
        _elect_many(rows, count, weights, vote, average, scratch, total)
    elif specialists == 1:
        _elect_few(np.int64(1), rows, count, weights, average, total)
    elif specialists == 2:
        _elect_few(np.int64(2), rows, count, weights, average, total)
    elif specialists == 3:
        _elect_few(np.int64(3), rows, count, weights, average, total)
    else:
        _elect_few(np.int64(4), rows, count, weights, average, total)


@inlined
def _elect_few(few: int, rows: np.ndarray, count: int, weights: np.ndarray, average: int, total: np.ndarray) -> None:
    for j in range(count):
        votes = weights[0] * rows[0, j]
        for i in range(1, few):
            votes += weights[i] * rows[i, j]
        elected = np.copysign(1.0, votes + 0.0)  # + 0.0: a sum of -0.0 elects + too; a choice would be computed twice
        moved, shares = 0.0, 0.0
        for i in range(few):
            value = weights[i] * rows[i, j]
            share = weights[i] if average == BY_WEIGHT else 1.0
            turned = -elected if weights[i] < 0.0 else elected
            agrees = rows[i, j] * turned > 0.0
            moved += value if agrees else 0.0
            shares += share if agrees else 0.0
        divisor = 1.0 if average == BY_NOTHING else shares
        mean = moved / divisor
        total[j] = mean if divisor != 0.0 else 0.0


@inner
def _elect_many(
    rows: np.ndarray, count: int, weights: np.ndarray, vote: int, average: int, scratch: np.ndarray, total: np.ndarray
) -> None:
    sign, divisor = scratch[0], scratch[1]
    for j in range(count):
        sign[j], divisor[j], total[j] = 0.0, 0.0, 0.0
    for i in range(rows.shape[0]):
        row, weight = rows[i], weights[i]
        for j in range(count):
            ballot = np.float64(row[j] > 0.0) - np.float64(row[j] < 0.0) if vote == COUNT else row[j]
            sign[j] += weight * ballot if vote == WEIGHTED_MASS else ballot
    for j in range(count):
        sign[j] = 1.0 if sign[j] >= 0.0 else -1.0
    for i in range(rows.shape[0]):
        row, weight = rows[i], weights[i]
        share = weight if average == BY_WEIGHT else 1.0
        turn = -1.0 if (vote == WEIGHTED_MASS) & (weight < 0.0) else 1.0
        for j in range(count):
            agrees = row[j] * sign[j] * turn > 0.0
            value = weight * row[j]
            total[j] += value if agrees else 0.0
            divisor[j] += share if agrees else 0.0
    if average != BY_NOTHING:
        for j in range(count):
            mean = total[j] / divisor[j]
            total[j] = mean if divisor[j] != 0.0 else 0.0


@inner
def largest(rows: np.ndarray, count: int, weights: np.ndarray, total: np.ndarray) -> None:
    """Write the weighted delta of largest magnitude for each entry; the first specialist wins a tie."""
    for j in range(count):
        total[j] = 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        weight = weights[i]
        for j in range(count):
            value = weight * row[j]
            best = total[j]
            total[j] = value if abs(value) > abs(best) else best


@inner
def active(
    rows: np.ndarray,
    count: int,
    weights: np.ndarray,
    theta: float,
    minimum: int,
    scratch: np.ndarray,
    total: np.ndarray,
) -> None:
    """Write the sum of Consensus TA: weighted, where at least `minimum` specialists stand out.

    scratch: (2, BLOCK) float64.
    """
    others, votes = scratch[0], scratch[1]
    for j in range(count):
        votes[j] = 0.0
        total[j] = 0.0
    for i in range(rows.shape[0]):
        for j in range(count):
            others[j] = 0.0
        for other in range(rows.shape[0]):
            if other != i:
                row = rows[other]
                for j in range(count):
                    others[j] += row[j]
        row = rows[i]
        weight = weights[i]
        for j in range(count):
            votes[j] += np.float64(abs(row[j]) > theta * abs(others[j]))
            total[j] += weight * row[j]
    least = np.float64(minimum)
    for j in range(count):
        total[j] = total[j] if votes[j] >= least else 0.0
