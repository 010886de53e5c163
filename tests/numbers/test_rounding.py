"""Rounding against exact rational arithmetic: the stored value is the nearest one, ties to even."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmerge.numbers.dtypes import DTYPES
from taskmerge.numbers.rounding import decode, encode


def neighbours(bits: int) -> list[tuple[int, Fraction]]:
    """The finite bf16 values at and beside a bit pattern (same sign), exactly."""
    around = [pattern for pattern in (bits - 1, bits, bits + 1) if 0 <= pattern & 0x7FFF < 0x7F80]
    values = decode(np.array(around, np.uint16), "BF16")
    return [(pattern, Fraction(float(value))) for pattern, value in zip(around, values, strict=True)]


@given(st.floats(-3e38, 3e38, allow_nan=False))
def test_bf16_is_the_nearest_value(value: float) -> None:
    bits = int(encode(np.array([value]), "BF16")[0])
    if bits & 0x7FFF == 0x7F80:
        assert abs(value) > 3.389e38 or abs(value) >= float(decode(np.array([0x7F7F], np.uint16), "BF16")[0])
        return
    exact = Fraction(value)
    distance = {pattern: abs(number - exact) for pattern, number in neighbours(bits)}
    assert distance[bits] == min(distance.values())
    tied = [pattern for pattern, gap in distance.items() if gap == distance[bits]]
    assert len(tied) == 1 or bits % 2 == 0


def test_bf16_does_not_round_twice() -> None:
    """1 + 2^-8 is half-way between two bf16 values; a hair above it must go up, although float32 drops the hair."""
    hair = np.array([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40])
    assert encode(hair, "BF16").tolist() == [0x3F80, 0x3F81, 0x3F80]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_round_trip_and_specials(dtype: str) -> None:
    values = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf])
    back = decode(encode(values, dtype), dtype)
    assert np.array_equal(back, values) and np.array_equal(np.signbit(back), np.signbit(values))
    assert np.isnan(decode(encode(np.array([np.nan]), dtype), dtype)[0])


@pytest.mark.parametrize(
    ("bits", "storage", "dtype"), [(0x7F800001, "u4", "F32"), (0x7F81, "u2", "BF16"), (0x7C01, "u2", "F16")]
)
def test_a_signalling_nan_is_a_nan_like_others(bits: int, storage: str, dtype: str) -> None:
    """No warning of NumPy's, which would reach the terminal."""
    import warnings

    kept = DTYPES[dtype].storage
    assert kept is not None
    stored = np.array([bits], storage).view(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(decode(stored, dtype)).all()
