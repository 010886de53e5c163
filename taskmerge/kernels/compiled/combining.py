"""The combine pass: raw inputs to raw output, block by block, many tensors (or pieces of them) per call."""

from __future__ import annotations

import numpy as np

from taskmerge.kernels.compiled import blocks, codes
from taskmerge.kernels.compiled.formats import add_delta, count_nonfinite, decode, decode_delta, encode
from taskmerge.kernels.compiled.inner import array_at, inner
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
    base_factors_at: int,
    sparsify_at: int,
    limits_at: int,
    consensus: int,
    vote: int,
    average: int,
    minimum: int,
    base_left_out: int,
    health_at: int,
    scratch_at: int,
    theta: float,
    scale: float,
) -> None:
    """Combine `pieces` runs of entries. `…_at` are addresses of C-contiguous arrays.

    addresses, formats: int64 (pieces, specialists + 2): base, specialists, output.  counts, starts: int64 (pieces,),
    length of the run and index of its first entry in the tensor (for the random bits).  keys: int64, low, high,
    factors, weights: float64, chances: int64, addresses of float64 probabilities per entry, all (pieces,
    specialists).  base_factors: float64 (pieces,).  sparsify, limits: int64 (specialists,).  health: int64 (2,), added
    to: non-finite entries in, out.  scratch: float64 ((specialists + 5) * BLOCK,).
    """
    tensors, rows_of = (pieces * (specialists + 2),), (pieces * specialists,)
    addresses, formats = array_at(addresses_at, tensors, np.int64), array_at(formats_at, tensors, np.int64)
    counts, starts = array_at(counts_at, (pieces,), np.int64), array_at(starts_at, (pieces,), np.int64)
    keys, chances = array_at(keys_at, rows_of, np.uint64), array_at(chances_at, rows_of, np.int64)
    low, high = array_at(low_at, rows_of, np.float64), array_at(high_at, rows_of, np.float64)
    factors = array_at(factors_at, rows_of, np.float64)
    base_factors = array_at(base_factors_at, (pieces,), np.float64)
    sparsify, limits = array_at(sparsify_at, (specialists,), np.int64), array_at(limits_at, (specialists,), np.uint64)
    health = array_at(health_at, (2,), np.int64)
    base, total = array_at(scratch_at, (BLOCK,), np.float64), array_at(scratch_at + 8 * BLOCK, (BLOCK,), np.float64)
    none = array_at(scratch_at + 16 * BLOCK, (BLOCK,), np.float64)
    delta = array_at(scratch_at + 24 * BLOCK, (BLOCK,), np.float64)
    scratch = array_at(scratch_at + 24 * BLOCK, (2, BLOCK), np.float64)
    rows = array_at(scratch_at + 40 * BLOCK, (specialists, BLOCK), np.float64)
    words_at = scratch_at + 32 * BLOCK
    plain = consensus == codes.SUM
    for i in range(specialists):
        plain &= sparsify[i] == codes.KEEP_ALL
    for j in range(BLOCK):
        none[j] = 0.0
    for piece in range(pieces):
        weights = array_at(weights_at + 8 * piece * specialists, (specialists,), np.float64)
        first_tensor, base_factor = piece * (specialists + 2), base_factors[piece]
        base_at, base_format = addresses[first_tensor], formats[first_tensor]
        out_at, out_format = addresses[first_tensor + specialists + 1], formats[first_tensor + specialists + 1]
        for done in range(0, counts[piece], BLOCK):
            count, first = min(BLOCK, counts[piece] - done), np.uint64(starts[piece] + done)
            decode(base_at, base_format, done, count, base)
            if plain:
                for j in range(BLOCK):
                    total[j] = 0.0
            for i in range(specialists):
                tensor, own = first_tensor + 1 + i, piece * specialists + i
                address, code = addresses[tensor], formats[tensor] & codes.FORMAT
                origin = none if formats[tensor] & codes.DELTA else base
                if plain:
                    add_delta(address, code, done, count, origin, weights[i], delta, total)
                    continue
                row = array_at(scratch_at + 8 * BLOCK * (5 + i), (BLOCK,), np.float64)
                decode_delta(address, code, done, count, origin, row if sparsify[i] == codes.KEEP_ALL else delta)
                bounds, random = (low[own], high[own]), (keys[own], first, limits[i])
                probabilities_at = chances[own] + 8 * done
                survive(sparsify[i], delta, count, bounds, random, factors[own], probabilities_at, words_at, row)
            if not plain:
                agree(consensus, rows, count, weights, (vote, average, minimum), theta, scratch, total)
            if base_left_out != 0:
                for j in range(count):
                    total[j] = scale * total[j] + 0.0  # no negative zeros: nothing there has a sign
            else:
                for j in range(count):
                    still = base_factor * base[j]
                    move = scale * total[j]
                    # An entry that nothing moves keeps the sign of a negative zero.
                    total[j] = still + move if move != 0.0 else still
            encode(total, out_at, out_format, done, count)
            bad = count_nonfinite(out_at, out_format, done, count)
            health[1] += bad
            # What is not finite in a sum's input is not in the sum; what was dropped is not seen there.
            if bad > 0 or not plain or base_left_out != 0:
                for i in range(specialists + 1):
                    tensor = first_tensor + i
                    health[0] += count_nonfinite(addresses[tensor], formats[tensor] & codes.FORMAT, done, count)


@inner
def survive(
    sparsify: int,
    delta: np.ndarray,
    count: int,
    bounds: tuple[float, float],
    random: tuple[np.uint64, np.uint64, np.uint64],
    factor: float,
    chances_at: int,
    words_at: int,
    out: np.ndarray,
) -> None:
    """Compute the surviving entries of one block of a delta. For KEEP_ALL, `out` is the delta itself and is unchanged.

    bounds: low, high.  random: key, index of the first entry, limit.  words: uint64 (BLOCK,), working space.
    """
    if sparsify == codes.KEEP_BETWEEN:
        blocks.keep_between(delta, count, bounds[0], bounds[1], out)
    elif sparsify == codes.DROP_RANDOM:
        blocks.drop_random(delta, count, random[0], random[1], random[2], factor, words_at, out)
    elif sparsify != codes.KEEP_ALL:
        chances = array_at(chances_at, (count,), np.float64)
        rescaled = sparsify == codes.DROP_BY_RANK_RESCALED
        blocks.drop_by_chance(delta, count, random[0], random[1], chances, rescaled, factor, words_at, out)


@inner
def agree(
    consensus: int,
    rows: np.ndarray,
    count: int,
    weights: np.ndarray,
    how: tuple[int, int, int],
    theta: float,
    scratch: np.ndarray,
    total: np.ndarray,
) -> None:
    """Write one block of the specialists' consensus into `total`. how: vote, average, minimum."""
    if consensus == codes.ELECT:
        blocks.elect(rows, count, weights, how[0], how[1], scratch, total)
    elif consensus == codes.LARGEST:
        blocks.largest(rows, count, weights, total)
    elif consensus == codes.ACTIVE:
        blocks.active(rows, count, weights, theta, how[2], scratch, total)
    else:
        blocks.weighted_sum(rows, count, weights, total)
