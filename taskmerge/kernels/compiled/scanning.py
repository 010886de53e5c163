"""The passes that measure: magnitudes counted against brackets, and sums that no number of threads changes."""

from __future__ import annotations

import numpy as np
from numba import njit

from taskmerge.kernels.compiled.blocks import random_bits
from taskmerge.kernels.compiled.formats import F64, bits_of_float, decode, decode_single
from taskmerge.kernels.pairs import BLOCK

_MAGNITUDE = np.uint32(0x7FFFFFFF)


@njit(nogil=True, error_model="numpy")
def _magnitude_block(
    addresses: np.ndarray,
    codes: np.ndarray,
    specialist: int,
    start: int,
    count: int,
    scratch: np.ndarray,
    wide: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Bits of float32(|x - b|). Where no input is F64, float32 subtraction gives the same as float64 rounded."""
    if codes[0] != F64 and codes[specialist + 1] != F64:
        decode_single(addresses[0], codes[0], start, count, scratch[0])
        decode_single(addresses[specialist + 1], codes[specialist + 1], start, count, scratch[1])
        base, other = scratch[0], scratch[1]
        for j in range(count):
            bits[j] = np.uint32(bits_of_float(np.float32(other[j] - base[j])) & _MAGNITUDE)
    else:
        decode(addresses[0], codes[0], start, count, wide[0])
        decode(addresses[specialist + 1], codes[specialist + 1], start, count, wide[1])
        base_wide, other_wide = wide[0], wide[1]
        for j in range(count):
            bits[j] = np.uint32(bits_of_float(np.float32(other_wide[j] - base_wide[j])) & _MAGNITUDE)


@njit(nogil=True, error_model="numpy", cache=True)
def magnitudes(addresses: np.ndarray, codes: np.ndarray, out: np.ndarray) -> None:
    """Magnitudes of one delta as float32 bits (uint32). addresses, codes: int64 (2,), base and specialist."""
    scratch = np.empty((2, BLOCK), np.float32)
    wide = np.empty((2, BLOCK), np.float64)
    done = 0
    while done < out.size:
        count = min(BLOCK, out.size - done)
        _magnitude_block(addresses, codes, 0, done, count, scratch, wide, out[done : done + count])
        done += count


@njit(nogil=True, error_model="numpy", cache=True)
def count_in_brackets(
    addresses: np.ndarray,
    codes: np.ndarray,
    count: int,
    specialists: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    shifts: np.ndarray,
    above: np.ndarray,
    histogram: np.ndarray,
) -> None:
    """One run of entries against one bracket per query.

    addresses, codes: int64 (specialists + 1,).  specialists: int64 (queries,), whose delta each query looks at, in
    rising order.  low, high: uint32 (queries,), bracket of magnitude bits, inclusive.  above: int64 (queries,), added
    to: entries over the bracket.  histogram: int64 (queries, bins), added to: entries inside, bin
    `(bits - low) >> shift`.
    """
    scratch = np.empty((2, BLOCK), np.float32)
    wide = np.empty((2, BLOCK), np.float64)
    bits = np.empty(BLOCK, np.uint32)
    done = 0
    while done < count:
        length = min(BLOCK, count - done)
        for query in range(specialists.size):
            if query == 0 or specialists[query] != specialists[query - 1]:
                _magnitude_block(addresses, codes, specialists[query], done, length, scratch, wide, bits)
            least, most, shift = low[query], high[query], shifts[query]
            width = np.uint32(most - least)
            over = np.int32(0)
            for j in range(length):
                over += np.int32(bits[j] > most)
            above[query] += over
            bins = histogram[query]
            for j in range(length):
                offset = np.uint32(bits[j] - least)
                if offset <= width:
                    bins[offset >> shift] += 1
        done += length


@njit(nogil=True, error_model="numpy")
def _fold(values: np.ndarray) -> float:
    """Sum of a power of two of values by halving, in a fixed order; destroys them."""
    half = values.size // 2
    while half > 0:
        for j in range(half):
            values[j] += values[j + half]
        half //= 2
    return values[0]


@njit(nogil=True, error_model="numpy")
def _delta_block(
    addresses: np.ndarray, codes: np.ndarray, start: int, count: int, base: np.ndarray, rows: np.ndarray
) -> None:
    """All specialists' deltas of one block, zeros after `count`."""
    decode(addresses[0], codes[0], start, count, base)
    for i in range(rows.shape[0]):
        row = rows[i]
        decode(addresses[i + 1], codes[i + 1], start, count, row)
        for j in range(count):
            row[j] -= base[j]
        for j in range(count, BLOCK):
            row[j] = 0.0


@njit(nogil=True, error_model="numpy", cache=True)
def gram_of_piece(addresses: np.ndarray, codes: np.ndarray, count: int, partial: np.ndarray) -> None:
    """`<d_i, d_j>` over one piece. partial: float64 (specialists, specialists, blocks), blocks a power of two, zeroed;
    the sum is folded over blocks and left in [:, :, 0]."""
    specialists = codes.size - 1
    rows = np.empty((specialists, BLOCK), np.float64)
    base = np.empty(BLOCK, np.float64)
    products = np.empty(BLOCK, np.float64)
    for block in range((count + BLOCK - 1) // BLOCK):
        length = min(BLOCK, count - block * BLOCK)
        _delta_block(addresses, codes, block * BLOCK, length, base, rows)
        for i in range(specialists):
            for k in range(i, specialists):
                first, second = rows[i], rows[k]
                for j in range(BLOCK):
                    products[j] = first[j] * second[j]
                partial[i, k, block] = _fold(products)
    for i in range(specialists):
        for k in range(i, specialists):
            partial[i, k, 0] = _fold(partial[i, k])
            partial[k, i, 0] = partial[i, k, 0]


@njit(nogil=True, error_model="numpy", cache=True)
def mass_of_piece(
    addresses: np.ndarray,
    codes: np.ndarray,
    count: int,
    start: int,
    keys: np.ndarray,
    limit: np.uint64,
    partial: np.ndarray,
) -> None:
    """Sums of magnitudes of one piece: of all entries and of those the random bits keep.

    start: index of the first entry in its tensor.  keys: uint64 (specialists,).  partial: float64 (2, specialists,
    blocks), blocks a power of two, zeroed; the sums are left in [:, :, 0].
    """
    specialists = codes.size - 1
    rows = np.empty((specialists, BLOCK), np.float64)
    base = np.empty(BLOCK, np.float64)
    mass = np.empty(BLOCK, np.float64)
    for block in range((count + BLOCK - 1) // BLOCK):
        length = min(BLOCK, count - block * BLOCK)
        _delta_block(addresses, codes, block * BLOCK, length, base, rows)
        first = np.uint64(start + block * BLOCK)
        for i in range(specialists):
            row, key = rows[i], keys[i]
            for j in range(BLOCK):
                mass[j] = abs(row[j])
            partial[0, i, block] = _fold(mass)
            for j in range(BLOCK):
                mass[j] = abs(row[j]) if random_bits(key, first + np.uint64(j)) < limit else 0.0
            partial[1, i, block] = _fold(mass)
    for part in range(2):
        for i in range(specialists):
            partial[part, i, 0] = _fold(partial[part, i])
