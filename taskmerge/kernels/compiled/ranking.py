"""Ranks of magnitudes within rows, for DELLA. The sort between the two kernels is NumPy's, which is vectorised."""

from __future__ import annotations

import numpy as np

from taskmerge.kernels.compiled.formats import array_at
from taskmerge.kernels.compiled.scanning import magnitude_block
from taskmerge.kernels.pairs import BLOCK

_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def pack(
    base_at: int,
    base_format: int,
    other_at: int,
    other_format: int,
    count: int,
    row: int,
    keys_at: int,
    scratch_at: int,
) -> None:
    """Per entry, magnitude bits above and place in its row below: keys uint64 (count,). Rows shorter than 2^32.
    scratch: float64 (3 * BLOCK,)."""
    keys = array_at(keys_at, (count,), np.uint64)
    space = array_at(scratch_at, (2, BLOCK), np.float64)
    block = array_at(scratch_at + 16 * BLOCK, (BLOCK,), np.uint32)
    place, done = 0, 0
    while done < count:
        bits = block[: min(BLOCK, count - done)]
        magnitude_block(base_at, base_format, other_at, other_format, done, space, bits)
        for j in range(bits.size):
            keys[done + j] = (np.uint64(bits[j]) << _32) | np.uint64(place)
            place += 1
            if place == row:
                place = 0
        done += bits.size


def chances_of_ranks(keys_at: int, count: int, row: int, chances_at: int, density: float, epsilon: float) -> None:
    """Keys sorted in each row -> each entry's keep-probability, at its place; equal magnitudes share their mean rank.

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
