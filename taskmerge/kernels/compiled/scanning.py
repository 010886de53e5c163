"""The passes that measure: magnitudes counted against brackets, and sums that no number of threads changes.

`…_at` are addresses of C-contiguous arrays: addresses and formats int64 (specialists + 1,), the base's first.
"""

from __future__ import annotations

import numpy as np

from taskmerge.kernels.compiled.codes import BF16, DELTA, F64, FORMAT, KEEP_ALL
from taskmerge.kernels.compiled.combining import survive
from taskmerge.kernels.compiled.formats import (
    decode,
    decode_delta,
    decode_single,
    float_of_bfloat,
    inside_of_64,
    lowest_bit,
)
from taskmerge.kernels.compiled.inner import array_at, bits_of_float, inlined, inner
from taskmerge.kernels.pairs import BLOCK
from taskmerge.kernels.selection import RAGGED

_MAGNITUDE = np.uint32(0x7FFFFFFF)


@inner
def magnitude_block(
    base_at: int,
    base_format: int,
    other_at: int,
    other_code: int,
    start: int,
    count: int,
    scratch_at: int,
    bits_at: int,
) -> None:
    """Write the bits of float32(|x - b|), or of float32(|x|) for a task vector's own entries: uint32 (count,).

    If no input is F64, float32 subtraction gives the same as rounded float64.
    """
    bits, other_format = array_at(bits_at, (count,), np.uint32), other_code & FORMAT
    first_at, from_format = base_at + 2 * start, base_format
    if other_code & DELTA:
        first_at, from_format = scratch_at + 16 * BLOCK, other_format
    if from_format == BF16 and other_format == BF16:
        first = array_at(first_at, (count,), np.uint16)
        second = array_at(other_at + 2 * start, (count,), np.uint16)
        for j in range(count):
            difference = np.float32(float_of_bfloat(second[j]) - float_of_bfloat(first[j]))
            bits[j] = np.uint32(bits_of_float(difference) & _MAGNITUDE)
    elif from_format != F64 and other_format != F64:
        base = array_at(scratch_at, (BLOCK,), np.float32)
        other = array_at(scratch_at + 8 * BLOCK, (BLOCK,), np.float32)
        if other_code & DELTA:
            for j in range(count):
                base[j] = np.float32(0.0)
        else:
            decode_single(base_at, base_format, start, count, base)
        decode_single(other_at, other_format, start, count, other)
        for j in range(count):
            bits[j] = np.uint32(bits_of_float(np.float32(other[j] - base[j])) & _MAGNITUDE)
    else:
        wide = array_at(scratch_at + (16 * BLOCK if other_code & DELTA else 0), (BLOCK,), np.float64)
        delta = array_at(scratch_at + 8 * BLOCK, (BLOCK,), np.float64)
        if not other_code & DELTA:
            decode(base_at, base_format, start, count, wide)
        decode_delta(other_at, other_format, start, count, wide, delta)
        for j in range(count):
            bits[j] = np.uint32(bits_of_float(np.float32(delta[j])) & _MAGNITUDE)


@inner
def zero_block(address: int) -> None:
    """Write zeros into a block of float64."""
    block = array_at(address, (BLOCK,), np.float64)
    for j in range(BLOCK):
        block[j] = 0.0


def magnitudes(
    pieces: int,
    specialists: int,
    addresses_at: int,
    formats_at: int,
    counts_at: int,
    total: int,
    out_at: int,
    scratch_at: int,
) -> None:
    """Write the magnitudes of `pieces` runs of entries, one after the other, as float32 bits.

    addresses, formats: int64 (pieces, specialists + 1).  counts: int64 (pieces,), their sum is total.  out: uint32
    (specialists, total).  scratch: float64 (3 * BLOCK,).
    """
    addresses = array_at(addresses_at, (pieces, specialists + 1), np.int64)
    formats = array_at(formats_at, (pieces, specialists + 1), np.int64)
    counts = array_at(counts_at, (pieces,), np.int64)
    zero_block(scratch_at + 16 * BLOCK)
    filled = 0
    for piece in range(pieces):
        base_at, base_format = addresses[piece, 0], formats[piece, 0]
        for i in range(specialists):
            other_at, code = addresses[piece, i + 1], formats[piece, i + 1]
            for done in range(0, counts[piece], BLOCK):
                length, bits_at = min(BLOCK, counts[piece] - done), out_at + 4 * (i * total + filled + done)
                magnitude_block(base_at, base_format, other_at, code, done, length, scratch_at, bits_at)
        filled += counts[piece]


def count_in_brackets(
    specialists: int,
    addresses_at: int,
    formats_at: int,
    count: int,
    queries: int,
    whose_at: int,
    low_at: int,
    high_at: int,
    shifts_at: int,
    above_at: int,
    bins: int,
    histogram_at: int,
    scratch_at: int,
) -> None:
    """Count one run of entries against one bracket per query.

    whose: int64 (queries,), the specialist each query looks at, in rising order.  low, high, shifts: uint32
    (queries,), bracket of magnitude bits, inclusive.  above: int64 (queries,), added to: entries over the bracket.
    histogram: int64 (queries, bins), added to: entries inside, bin `(bits - low) >> shift`, each
    counting RAGGED more if its last `shift` bits are not zero.  scratch: float64 (4 * BLOCK,).
    """
    addresses = array_at(addresses_at, (specialists + 1,), np.int64)
    formats = array_at(formats_at, (specialists + 1,), np.int64)
    whose = array_at(whose_at, (queries,), np.int64)
    low, high = array_at(low_at, (queries,), np.uint32), array_at(high_at, (queries,), np.uint32)
    shifts = array_at(shifts_at, (queries,), np.uint32)
    above = array_at(above_at, (queries,), np.int64)
    histogram = array_at(histogram_at, (queries, bins), np.int64)
    block_at = scratch_at + 24 * BLOCK
    bits = array_at(block_at, (BLOCK,), np.uint32)
    zero_block(scratch_at + 16 * BLOCK)
    for done in range(0, count, BLOCK):
        length = min(BLOCK, count - done)
        for query in range(queries):
            i = whose[query] + 1
            if query == 0 or whose[query] != whose[query - 1]:
                where = (addresses[0], formats[0], addresses[i], formats[i])
                magnitude_block(where[0], where[1], where[2], where[3], done, length, scratch_at, block_at)
            most = np.int32(high[query])
            over = np.int32(0)
            for j in range(length):
                over = np.int32(over + np.int32(np.int32(bits[j]) > most))  # a plain += would be of 64 bits
            above[query] += over
            count_inside(block_at, length, low[query], high[query], shifts[query], histogram[query])


@inner
def count_inside(
    block_at: int, length: int, low: np.uint32, high: np.uint32, shift: np.uint32, bins: np.ndarray
) -> None:
    """Add the entries of one block that are in [low, high] to their bins.

    They are few and unpredictable: as bits of one number, 64 at a time, they cost one wrong branch per 64, not each.
    """
    block = array_at(block_at, (BLOCK,), np.uint32)
    width, low_bits = np.uint32(high - low), np.uint32((np.uint32(1) << shift) - np.uint32(1))
    for start in range(0, length, 64):
        inside = inside_of_64(block_at + 4 * start, low, width)
        if length - start < 64:
            inside &= (np.uint64(1) << np.uint64(length - start)) - np.uint64(1)
        while inside != 0:
            offset = np.uint32(block[start + lowest_bit(inside)] - low)
            inside &= inside - np.uint64(1)
            bins[offset >> shift] += 1 + (RAGGED if offset & low_bits != 0 else 0)


@inlined
def fold(values: np.ndarray) -> float:
    """Sum of a power of two of values by halving, in a fixed order; destroys them."""
    half = values.size // 2
    while half > 0:
        for j in range(half):
            values[j] += values[j + half]
        half //= 2
    return values[0]


@inner
def vector_block(
    addresses: np.ndarray, formats: np.ndarray, start: int, count: int, models: int, scratch_at: int
) -> None:
    """Write all specialists' deltas of one block, or with models != 0 the models b + d; zeros after `count`.

    scratch: float64 ((specialists + 3) * BLOCK,): the base, zeros, the base negated, the specialists' rows.
    """
    base = array_at(scratch_at, (BLOCK,), np.float64)
    none = array_at(scratch_at + 8 * BLOCK, (BLOCK,), np.float64)
    negated = array_at(scratch_at + 16 * BLOCK, (BLOCK,), np.float64)
    decode(addresses[0], formats[0], start, count, base)
    for j in range(count):
        none[j] = 0.0
        negated[j] = -base[j]
    for i in range(addresses.size - 1):
        row = array_at(scratch_at + 8 * BLOCK * (3 + i), (BLOCK,), np.float64)
        origin = none if models != 0 else base
        if formats[i + 1] & DELTA:
            origin = negated if models != 0 else none
        decode_delta(addresses[i + 1], formats[i + 1] & FORMAT, start, count, origin, row)
        for j in range(count, BLOCK):
            row[j] = 0.0


def gram_of_piece(
    specialists: int,
    addresses_at: int,
    formats_at: int,
    count: int,
    models: int,
    blocks: int,
    partial_at: int,
    scratch_at: int,
) -> None:
    """Compute `<d_i, d_j>` over one piece, or `<x_i, x_j>` with models != 0.

    partial: float64 (specialists, specialists, blocks), blocks a power of two, zeroed; the sums are folded over blocks
    and left in [:, :, 0]. scratch: float64 ((specialists + 4) * BLOCK,).
    """
    addresses = array_at(addresses_at, (specialists + 1,), np.int64)
    formats = array_at(formats_at, (specialists + 1,), np.int64)
    partial = array_at(partial_at, (specialists, specialists, blocks), np.float64)
    products = array_at(scratch_at, (BLOCK,), np.float64)
    rows = array_at(scratch_at + 32 * BLOCK, (specialists, BLOCK), np.float64)
    for block in range((count + BLOCK - 1) // BLOCK):
        done = block * BLOCK
        vector_block(addresses, formats, done, min(BLOCK, count - done), models, scratch_at + 8 * BLOCK)
        for i in range(specialists):
            for k in range(i, specialists):
                first, second = rows[i], rows[k]
                for j in range(BLOCK):
                    products[j] = first[j] * second[j]
                partial[i, k, block] = fold(products)
    for i in range(specialists):
        for k in range(i, specialists):
            partial[i, k, 0] = fold(partial[i, k])
            partial[k, i, 0] = partial[i, k, 0]


def mass_of_piece(
    specialists: int,
    addresses_at: int,
    formats_at: int,
    count: int,
    start: int,
    keys_at: int,
    sparsify_at: int,
    limits_at: int,
    chances_at: int,
    blocks: int,
    partial_at: int,
    scratch_at: int,
) -> None:
    """Sums of magnitudes of one piece: of all entries and of those that random bits keep.

    start: index of the first entry in its tensor.  keys, sparsify, limits: (specialists,), chances: int64
    (specialists,), addresses, as for `combining.combine_pieces`.  partial: float64 (2, specialists, blocks), blocks a
    power of two, zeroed; the sums are left in [:, :, 0].  scratch: float64 ((specialists + 5) * BLOCK,).
    """
    addresses = array_at(addresses_at, (specialists + 1,), np.int64)
    formats = array_at(formats_at, (specialists + 1,), np.int64)
    keys, chances = array_at(keys_at, (specialists,), np.uint64), array_at(chances_at, (specialists,), np.int64)
    sparsify, limits = array_at(sparsify_at, (specialists,), np.int64), array_at(limits_at, (specialists,), np.uint64)
    partial = array_at(partial_at, (2, specialists, blocks), np.float64)
    mass, words_at = array_at(scratch_at, (BLOCK,), np.float64), scratch_at + 8 * BLOCK
    for block in range((count + BLOCK - 1) // BLOCK):
        done = block * BLOCK
        length = min(BLOCK, count - done)
        vector_block(addresses, formats, done, length, np.int64(0), scratch_at + 16 * BLOCK)
        for i in range(specialists):
            row = array_at(scratch_at + 8 * BLOCK * (5 + i), (BLOCK,), np.float64)
            for j in range(BLOCK):
                mass[j] = abs(row[j])
            partial[0, i, block] = fold(mass)
            for j in range(BLOCK):
                mass[j] = row[j] if sparsify[i] == KEEP_ALL else 0.0
            random = keys[i], np.uint64(start + done), limits[i]
            survive(sparsify[i], row, length, (0.0, np.inf), random, 1.0, chances[i] + 8 * done, words_at, mass)
            for j in range(BLOCK):
                mass[j] = abs(mass[j])
            partial[1, i, block] = fold(mass)
    for part in range(2):
        for i in range(specialists):
            partial[part, i, 0] = fold(partial[part, i])
