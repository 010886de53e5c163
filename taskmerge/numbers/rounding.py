"""Stored bits to float64 and back, rounding once, to nearest even. The NumPy form; kernels have their own."""

from __future__ import annotations

import numpy as np

from taskmerge.errors import MergeError
from taskmerge.numbers.dtypes import DTYPES


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Entries of format `dtype` (BF16 as uint16 bits), any shape -> float64 of the same shape, exact."""
    if not DTYPES[dtype].mergeable:
        raise MergeError(f"{dtype} entries are not floating-point numbers to compute with")
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like others
        if dtype == "BF16":
            return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        return stored.astype(np.float64)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 of any shape to entries of format `dtype`, to nearest even; overflow becomes inf."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(DTYPES[dtype].storage)
    # Through float32 by rounding to odd: the last bit remembers that something was cut off, so that the second
    # rounding decides as if it had seen all of the float64.
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    inexact = (narrow != values) & np.isfinite(values)
    towards_zero = bits - (np.abs(narrow.astype(np.float64)) > np.abs(values)).astype(np.uint32)
    bits = np.where(inexact, towards_zero | np.uint32(1), bits)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = np.uint32(0x7FC0)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


DIGITS = {"F64": (53, -1022), "F32": (24, -126), "F16": (11, -14), "BF16": (8, -126)}
"""Binary digits of a format's numbers, and the exponent of the smallest normal one."""


def step(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the distance between numbers of format `dtype` at each value, float64, also for subnormal numbers."""
    digits, least = DIGITS[dtype]
    exponents = np.maximum(np.frexp(values)[1] - 1, least)
    exponents = np.where(values == 0, least, exponents)
    return np.ldexp(1.0, exponents - (digits - 1))


def on_grid(values: np.ndarray, dtype: str) -> bool:
    """Return whether every value (float64) is a number of format `dtype`."""
    return dtype == "F64" or bool(np.array_equal(decode(encode(values, dtype), dtype), values))


def holds_nan(stored: np.ndarray, dtype: str) -> bool:
    """Return whether any entry of format `dtype` is NaN."""
    if dtype == "BF16":
        return bool(((stored & np.uint16(0x7FFF)) > np.uint16(0x7F80)).any())
    return bool(np.isnan(stored).any())


def infinities(stored: np.ndarray, dtype: str) -> int:
    """Count the entries of format `dtype` that are +inf or -inf."""
    if dtype == "BF16":
        return int(np.count_nonzero((stored & np.uint16(0x7FFF)) == np.uint16(0x7F80)))
    return int(np.count_nonzero(np.isinf(stored)))
