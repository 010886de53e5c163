"""The combine pass: raw inputs to raw output, block by block, many tensors (or pieces of them) per call."""

from __future__ import annotations

import numpy as np

from taskmerge.kernels.compiled import blocks, codes
from taskmerge.kernels.compiled.formats import (
    array_at,
    count_nonfinite,
    decode,
    decode_delta,
    encode,
)
from taskmerge.kernels.pairs import BLOCK


def combine_pieces(
    pieces: int,
    specialists: int,
    addresses_at: int,
    formats_at: int,
    counts_at: int,
    starts_at: int,
    keys_at: int,
    low_at: int,
    high_at: int,
    factors_at: int,
    chances_at: int,
    weights_at: int,
    limit: int,
    sparsify: int,
    consensus: int,
    vote: int,
    average: int,
    minimum: int,
    health_at: int,
    scratch_at: int,
    divisor: float,
    theta: float,
    base_factor: float,
    scale: float,
) -> None:
    """Combine `pieces` runs of entries. `…_at` are addresses of C-contiguous arrays.

    addresses, formats: int64 (pieces, specialists + 2): base, specialists, output.  counts, starts: int64 (pieces,),
    length of the run and index of its first entry in the tensor (for the random bits).  keys: int64, low, high:
    float32, factors, weights: float64, chances: int64, addresses of float64 probabilities per entry, all (pieces,
    specialists).  health: int64 (2,), added to: non-finite entries in, out.  scratch: float64 ((specialists + 4) *
    BLOCK,).
    """
    addresses = array_at(addresses_at, (pieces, specialists + 2), np.int64)
    formats = array_at(formats_at, (pieces, specialists + 2), np.int64)
    counts, starts = array_at(counts_at, (pieces,), np.int64), array_at(starts_at, (pieces,), np.int64)
    keys = array_at(keys_at, (pieces, specialists), np.uint64)
    low = array_at(low_at, (pieces, specialists), np.float32)
    high = array_at(high_at, (pieces, specialists), np.float32)
    factors = array_at(factors_at, (pieces, specialists), np.float64)
    chances = array_at(chances_at, (pieces, specialists), np.int64)
    weights = array_at(weights_at, (pieces, specialists), np.float64)
    health = array_at(health_at, (2,), np.int64)
    space = array_at(scratch_at, (specialists + 4, BLOCK), np.float64)
    base, total, scratch, rows = space[0], space[1], space[2:4], space[4:]
    keep_rows = consensus != codes.SUM
    for piece in range(pieces):
        out, out_format = addresses[piece, specialists + 1], formats[piece, specialists + 1]
        done = 0
        while done < counts[piece]:
            count = min(BLOCK, counts[piece] - done)
            first = np.uint64(starts[piece] + done)
            health[0] += count_nonfinite(addresses[piece, 0], formats[piece, 0], done, count)
            decode(addresses[piece, 0], formats[piece, 0], done, count, base)
            for j in range(count):
                total[j] = 0.0
            for i in range(specialists):
                address, code = addresses[piece, i + 1], formats[piece, i + 1]
                row = rows[i if keep_rows else 0]
                health[0] += count_nonfinite(address, code, done, count)
                decode_delta(address, code, done, count, base, row)
                if sparsify == codes.KEEP_BETWEEN:
                    blocks.keep_between(row, count, low[piece, i], high[piece, i])
                elif sparsify == codes.DROP_RANDOM:
                    blocks.drop_random(row, count, keys[piece, i], first, np.uint64(limit), divisor, factors[piece, i])
                elif sparsify != codes.KEEP_ALL:
                    chance = array_at(chances[piece, i] + 8 * done, (count,), np.float64)
                    rescale = sparsify == codes.DROP_BY_RANK_RESCALED
                    blocks.drop_by_chance(row, count, keys[piece, i], first, chance, rescale)
                if not keep_rows:
                    blocks.add_weighted(row, count, weights[piece, i], total)
            if consensus == codes.ELECT:
                blocks.elect(rows, count, weights[piece], vote, average, scratch, total)
            elif consensus == codes.LARGEST:
                blocks.largest(rows, count, weights[piece], total)
            elif consensus == codes.ACTIVE:
                blocks.active(rows, count, weights[piece], theta, minimum, scratch, total)
            for j in range(count):
                still = base_factor * base[j]
                move = scale * total[j]
                # An entry that nothing moves keeps the sign of a negative zero.
                total[j] = still + move if move != 0.0 else still
            encode(total, out, out_format, done, count)
            health[1] += count_nonfinite(out, out_format, done, count)
            done += count
