"""The passes that measure: magnitudes counted against brackets, and sums that no number of threads changes.

`…_at` are addresses of C-contiguous arrays: addresses and formats int64 (specialists + 1,), the base's first.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from taskmerge.kernels.compiled.blocks import drop_random
from taskmerge.kernels.compiled.codes import BF16, F64
from taskmerge.kernels.compiled.formats import (
    array_at,
    bits_of_float,
    decode,
    decode_delta,
    decode_single,
    float_of_bfloat,
    inside_of_64,
    lowest_bit,
)
from taskmerge.kernels.pairs import BLOCK
from taskmerge.kernels.selection import RAGGED

_MAGNITUDE = np.uint32(0x7FFFFFFF)


@njit(nogil=True, error_model="numpy")
def magnitude_block(
    base_at: int, base_format: int, other_at: int, other_format: int, start: int, space: np.ndarray, bits: np.ndarray
) -> None:
    """Bits of float32(|x - b|), uint32. Where no input is F64, float32 subtraction gives the same as float64 rounded.

    space: float64 (2, BLOCK).
    """
    count = bits.size
    if base_format == BF16 and other_format == BF16:
        first = array_at(base_at + 2 * start, (count,), np.uint16)
        second = array_at(other_at + 2 * start, (count,), np.uint16)
        for j in range(count):
            difference = np.float32(float_of_bfloat(second[j]) - float_of_bfloat(first[j]))
            bits[j] = np.uint32(bits_of_float(difference) & _MAGNITUDE)
    elif base_format != F64 and other_format != F64:
        base, other = space[0].view(np.float32), space[1].view(np.float32)
        decode_single(base_at, base_format, start, count, base)
        decode_single(other_at, other_format, start, count, other)
        for j in range(count):
            bits[j] = np.uint32(bits_of_float(np.float32(other[j] - base[j])) & _MAGNITUDE)
    else:
        base_wide, delta = space[0], space[1]
        decode(base_at, base_format, start, count, base_wide)
        decode_delta(other_at, other_format, start, count, base_wide, delta)
        for j in range(count):
            bits[j] = np.uint32(bits_of_float(np.float32(delta[j])) & _MAGNITUDE)


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
    """Magnitudes of `pieces` runs of entries, one after the other, as float32 bits.

    addresses, formats: int64 (pieces, specialists + 1).  counts: int64 (pieces,), their sum is total.  out: uint32
    (specialists, total).  scratch: float64 (2 * BLOCK,).
    """
    addresses = array_at(addresses_at, (pieces, specialists + 1), np.int64)
    formats = array_at(formats_at, (pieces, specialists + 1), np.int64)
    counts = array_at(counts_at, (pieces,), np.int64)
    out = array_at(out_at, (specialists, total), np.uint32)
    space = array_at(scratch_at, (2, BLOCK), np.float64)
    filled = 0
    for piece in range(pieces):
        base_at, base_format = addresses[piece, 0], formats[piece, 0]
        for i in range(specialists):
            other_at, other_format = addresses[piece, i + 1], formats[piece, i + 1]
            done = 0
            while done < counts[piece]:
                end = min(done + BLOCK, counts[piece])
                bits = out[i, filled + done : filled + end]
                magnitude_block(base_at, base_format, other_at, other_format, done, space, bits)
                done = end
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
    """One run of entries against one bracket per query.

    whose: int64 (queries,), the specialist each query looks at, in rising order.  low, high, shifts: uint32
    (queries,), bracket of magnitude bits, inclusive.  above: int64 (queries,), added to: entries over the bracket.
    histogram: int64 (queries, bins), added to: entries inside, bin `(bits - low) >> shift`, each
    counting RAGGED more if its last `shift` bits are not zero.  scratch: float64 (3 * BLOCK,).
    """
    addresses = array_at(addresses_at, (specialists + 1,), np.int64)
    formats = array_at(formats_at, (specialists + 1,), np.int64)
    whose = array_at(whose_at, (queries,), np.int64)
    low, high = array_at(low_at, (queries,), np.uint32), array_at(high_at, (queries,), np.uint32)
    shifts = array_at(shifts_at, (queries,), np.uint32)
    above = array_at(above_at, (queries,), np.int64)
    histogram = array_at(histogram_at, (queries, bins), np.int64)
    space = array_at(scratch_at, (2, BLOCK), np.float64)
    block_at = scratch_at + 16 * BLOCK
    block = array_at(block_at, (BLOCK,), np.uint32)
    done = 0
    while done < count:
        length = min(BLOCK, count - done)
        bits = block[:length]
        for query in range(queries):
            i = whose[query] + 1
            if query == 0 or whose[query] != whose[query - 1]:
                magnitude_block(addresses[0], formats[0], addresses[i], formats[i], done, space, bits)
            most = np.int32(high[query])
            over = np.int32(0)
            for j in range(length):
                over = np.int32(over + np.int32(np.int32(bits[j]) > most))  # a plain += would be of 64 bits
            above[query] += over
            count_inside(block_at, length, low[query], high[query], shifts[query], histogram[query])
        done += length


@njit(nogil=True, error_model="numpy")
def count_inside(
    block_at: int, length: int, low: np.uint32, high: np.uint32, shift: np.uint32, bins: np.ndarray
) -> None:
    """Adds the entries of one block that lie in [low, high] to their bins. Few do, and which cannot be predicted: found
    64 at a time as bits of one number, they cost a wrong guess per 64, not each."""
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


@njit(nogil=True, error_model="numpy")
def fold(values: np.ndarray) -> float:
    """Sum of a power of two of values by halving, in a fixed order; destroys them."""
    half = values.size // 2
    while half > 0:
        for j in range(half):
            values[j] += values[j + half]
        half //= 2
    return values[0]


@njit(nogil=True, error_model="numpy")
def delta_block(
    addresses: np.ndarray, formats: np.ndarray, start: int, count: int, base: np.ndarray, rows: np.ndarray
) -> None:
    """All specialists' deltas of one block, zeros after `count`."""
    decode(addresses[0], formats[0], start, count, base)
    for i in range(rows.shape[0]):
        row = rows[i]
        decode_delta(addresses[i + 1], formats[i + 1], start, count, base, row)
        for j in range(count, BLOCK):
            row[j] = 0.0


def gram_of_piece(
    specialists: int, addresses_at: int, formats_at: int, count: int, blocks: int, partial_at: int, scratch_at: int
) -> None:
    """`<d_i, d_j>` over one piece. partial: float64 (specialists, specialists, blocks), blocks a power of two, zeroed;
    the sums are folded over blocks and left in [:, :, 0]. scratch: float64 ((specialists + 2) * BLOCK,)."""
    addresses = array_at(addresses_at, (specialists + 1,), np.int64)
    formats = array_at(formats_at, (specialists + 1,), np.int64)
    partial = array_at(partial_at, (specialists, specialists, blocks), np.float64)
    space = array_at(scratch_at, (specialists + 2, BLOCK), np.float64)
    base, products, rows = space[0], space[1], space[2:]
    for block in range((count + BLOCK - 1) // BLOCK):
        delta_block(addresses, formats, block * BLOCK, min(BLOCK, count - block * BLOCK), base, rows)
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
    limit: int,
    blocks: int,
    partial_at: int,
    scratch_at: int,
) -> None:
    """Sums of magnitudes of one piece: of all entries and of those the random bits keep.

    start: index of the first entry in its tensor.  keys: uint64 (specialists,).  partial: float64 (2, specialists,
    blocks), blocks a power of two, zeroed; the sums are left in [:, :, 0].  scratch: float64 ((specialists + 2) *
    BLOCK,).
    """
    addresses = array_at(addresses_at, (specialists + 1,), np.int64)
    formats = array_at(formats_at, (specialists + 1,), np.int64)
    keys = array_at(keys_at, (specialists,), np.uint64)
    partial = array_at(partial_at, (2, specialists, blocks), np.float64)
    space = array_at(scratch_at, (specialists + 2, BLOCK), np.float64)
    base, mass, rows = space[0], space[1], space[2:]
    for block in range((count + BLOCK - 1) // BLOCK):
        delta_block(addresses, formats, block * BLOCK, min(BLOCK, count - block * BLOCK), base, rows)
        first = np.uint64(start + block * BLOCK)
        for i in range(specialists):
            row, key = rows[i], keys[i]
            for j in range(BLOCK):
                mass[j] = abs(row[j])
            partial[0, i, block] = fold(mass)
            drop_random(row, BLOCK, key, first, np.uint64(limit), 1.0, base.view(np.uint64), mass)
            for j in range(BLOCK):
                mass[j] = abs(mass[j])
            partial[1, i, block] = fold(mass)
    for part in range(2):
        for i in range(specialists):
            partial[part, i, 0] = fold(partial[part, i])
