"""Ranks of magnitudes within rows, for DELLA. The sort between two kernels is NumPy's, which is vectorised.

It takes half the time for keys of 32 bits as for keys of 64. 16-bit inputs mostly fit in 32: their differences are
multiples of some power of two, few of them odd ones.
"""

from __future__ import annotations

import numpy as np

from taskmerge.kernels.compiled.inner import array_at, float_of_bits, inner

_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def pack_short(magnitudes_at: int, count: int, row: int, place_bits: int, keys_at: int) -> None:
    """Write a key for each entry: its magnitude in the upper bits, its place in its row in the lower bits.

    keys: uint32 (count,). The magnitude is a whole number of 32 - place_bits bits, of which the largest magnitude of
    the row takes all but one at least. Its last bit is set if the others are inexact: two such entries may differ
    although their numbers are equal. magnitudes: uint32 (count,), bits of float32.
    """
    rows = count // row
    all_magnitudes, all_keys = (
        array_at(magnitudes_at, (rows, row), np.uint32),
        array_at(keys_at, (rows, row), np.uint32),
    )
    above = np.uint32(place_bits)
    for number in range(rows):
        magnitudes, keys = all_magnitudes[number], all_keys[number]
        most = np.uint32(0)
        for j in range(row):
            most = max(most, magnitudes[j])
        scale = scale_to(np.float64(float_of_bits(most)), 31 - place_bits)
        for j in range(row):
            value = np.float64(float_of_bits(magnitudes[j])) * scale
            whole = np.int32(value)
            odd = np.uint32(1) if np.float64(whole) != value else np.uint32(0)
            keys[j] = ((np.uint32(whole) << np.uint32(1) | odd) << above) | np.uint32(j)


@inner
def scale_to(value: float, bits: int) -> float:
    """Return the power of two that brings a positive finite number to [2^(bits - 1), 2^bits); 1 for any other."""
    scale = 1.0
    while 0.0 < value * scale < 2.0 ** (bits - 1):
        scale *= 2.0
    while 2.0**bits <= value * scale < np.inf:
        scale *= 0.5
    return scale


def chances_of_short(
    keys_at: int, count: int, row: int, place_bits: int, table_at: int, chances_at: int, left_at: int, scratch_at: int
) -> None:
    """Compute the chances of `chances_of_ranks` for the keys of `pack_short`.

    table: float64 (2 * row - 1,), the probability by twice the mean rank.  left: uint8 (rows,), 1 for a row whose keys
    do not distinguish all its magnitudes.  scratch: uint32 (row,). Indices are unsigned: for signed ones, numba would
    test whether they count from the end.
    """
    rows = count // row
    all_keys, all_chances = array_at(keys_at, (rows, row), np.uint32), array_at(chances_at, (rows, row), np.float64)
    table, left = array_at(table_at, (2 * row - 1,), np.float64), array_at(left_at, (rows,), np.uint8)
    first = array_at(scratch_at, (row,), np.uint32)
    above, places = np.uint32(place_bits), np.uint32((1 << place_bits) - 1)
    for number in range(rows):
        keys, chances = all_keys[number], all_chances[number]
        unclear, less, before = np.uint32(0), np.uint32(0), np.uint32(keys[0] >> above)
        first[0] = less
        for j in range(1, row):
            here = np.uint32(keys[j] >> above)
            unclear |= here if here == before else np.uint32(0)
            less = less if here == before else np.uint32(j)
            first[j] = less
            before = here
        left[number] = np.uint8(unclear & np.uint32(1))
        last, after = np.uint32(row - 1), before
        for back in range(row):
            place = np.uint64(row - 1 - back)
            key = keys[place]
            last = last if np.uint32(key >> above) == after else np.uint32(place)
            after = np.uint32(key >> above)
            chances[np.uint64(key & places)] = table[np.uint64(first[place]) + np.uint64(last)]


def chances_of_ranks(keys_at: int, count: int, row: int, chances_at: int, density: float, epsilon: float) -> None:
    """Write each entry's keep-probability from keys sorted in each row; equal magnitudes share their mean rank.

    keys: uint64 (count,), chances: float64 (count,); count is a multiple of row.
    """
    keys = array_at(keys_at, (count,), np.uint64)
    chances = array_at(chances_at, (count,), np.float64)
    for start in range(0, count, row):
        less = 0
        while less < row:
            magnitude = keys[start + less] >> _32
            end = less + 1
            while end < row and keys[start + end] >> _32 == magnitude:
                end += 1
            chance = density
            if row > 1:
                rank = np.float64(less) + np.float64(end - less - 1) / 2.0
                chance = density - epsilon + 2.0 * epsilon * rank / np.float64(row - 1)
            chance = min(max(chance, 0.0), 1.0)
            for j in range(less, end):
                chances[start + np.int64(keys[start + j] & _LOW)] = chance
            less = end
