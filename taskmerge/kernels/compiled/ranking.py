"""Ranks of magnitudes within rows, for DELLA. The sort between the two loops is NumPy's, which is vectorised."""

from __future__ import annotations

import numpy as np
from numba import njit

from taskmerge.kernels.compiled.scanning import magnitudes

_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@njit(nogil=True, error_model="numpy", cache=True)
def pack(addresses: np.ndarray, codes: np.ndarray, specialist: int, row: int, keys: np.ndarray) -> None:
    """Per entry, magnitude bits above and place in its row below: uint64 (entries,). Rows shorter than 2^32."""
    two = np.array([addresses[0], addresses[specialist + 1]])
    two_codes = np.array([codes[0], codes[specialist + 1]])
    bits = np.empty(keys.size, np.uint32)
    magnitudes(two, two_codes, bits)
    place = 0
    for j in range(keys.size):
        keys[j] = (np.uint64(bits[j]) << _32) | np.uint64(place)
        place += 1
        if place == row:
            place = 0


@njit(nogil=True, error_model="numpy", cache=True)
def chances_of_ranks(keys: np.ndarray, row: int, density: float, epsilon: float, chances: np.ndarray) -> None:
    """Sorted keys -> each entry's keep-probability, at its place; equal magnitudes share their mean rank."""
    for start in range(0, keys.size, row):
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
