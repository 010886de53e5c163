"""The combine pass: raw inputs to raw output, block by block, many tensors (or pieces of them) per call."""

from __future__ import annotations

import numpy as np
from numba import njit

from taskmerge.kernels.compiled import blocks
from taskmerge.kernels.compiled.formats import carray, count_nonfinite, decode, encode, pointer
from taskmerge.kernels.pairs import BLOCK

KEEP_ALL, KEEP_BETWEEN, DROP_RANDOM, DROP_BY_RANK, DROP_BY_RANK_RESCALED = 0, 1, 2, 3, 4


@njit(nogil=True, error_model="numpy", cache=True)
def combine_pieces(
    addresses: np.ndarray,
    codes: np.ndarray,
    counts: np.ndarray,
    starts: np.ndarray,
    keys: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    limit: np.uint64,
    divisor: float,
    factors: np.ndarray,
    sparsify: int,
    chances: np.ndarray,
    weights: np.ndarray,
    consensus: int,
    vote: int,
    average: int,
    theta: float,
    minimum: int,
    base_factor: float,
    scale: float,
    health: np.ndarray,
) -> None:
    """Combine `pieces` runs of entries.

    addresses, codes: int64 (pieces, specialists + 2): base, specialists, output.  counts, starts: int64 (pieces,),
    length of the run and the index of its first entry in the tensor (for the random bits).  keys: uint64, low, high:
    float32, factors, weights: float64, chances: int64, addresses of float64 probabilities per entry (`DROP_BY_RANK`),
    all (pieces, specialists).  health: int64 (2,), added to: non-finite entries
    in, out.
    """
    specialists = weights.shape[1]
    keep_rows = consensus != blocks.SUM
    rows = np.empty((specialists if keep_rows else 1, BLOCK), np.float64)
    base = np.empty(BLOCK, np.float64)
    total = np.empty(BLOCK, np.float64)
    scratch = np.empty((2, BLOCK), np.float64)
    for piece in range(counts.size):
        done = 0
        while done < counts[piece]:
            count = min(BLOCK, counts[piece] - done)
            health[0] += count_nonfinite(addresses[piece, 0], codes[piece, 0], done, count)
            decode(addresses[piece, 0], codes[piece, 0], done, count, base)
            for j in range(count):
                total[j] = 0.0
            for i in range(specialists):
                address, code = addresses[piece, i + 1], codes[piece, i + 1]
                row = rows[i if keep_rows else 0]
                health[0] += count_nonfinite(address, code, done, count)
                decode(address, code, done, count, row)
                for j in range(count):
                    row[j] -= base[j]
                if sparsify == KEEP_BETWEEN:
                    blocks.keep_between(row, count, low[piece, i], high[piece, i])
                elif sparsify == DROP_RANDOM:
                    first = np.uint64(starts[piece] + done)
                    blocks.drop_random(row, count, keys[piece, i], first, limit, divisor, factors[piece, i])
                elif sparsify != KEEP_ALL:
                    first = np.uint64(starts[piece] + done)
                    chance = carray(pointer(chances[piece, i] + 8 * done), count, np.float64)
                    rescale = sparsify == DROP_BY_RANK_RESCALED
                    blocks.drop_by_chance(row, count, keys[piece, i], first, chance, rescale)
                if not keep_rows:
                    blocks.add_weighted(row, count, weights[piece, i], total)
            if consensus == blocks.ELECT:
                blocks.elect(rows, count, weights[piece], vote, average, scratch, total)
            elif consensus == blocks.LARGEST:
                blocks.largest(rows, count, weights[piece], total)
            elif consensus == blocks.ACTIVE:
                blocks.active(rows, count, weights[piece], theta, minimum, scratch, total)
            for j in range(count):
                still = base_factor * base[j]
                move = scale * total[j]
                # An entry that nothing moves keeps the sign of a negative zero.
                total[j] = still + move if move != 0.0 else still
            encode(total, addresses[piece, specialists + 1], codes[piece, specialists + 1], done, count)
            health[1] += count_nonfinite(addresses[piece, specialists + 1], codes[piece, specialists + 1], done, count)
            done += count
