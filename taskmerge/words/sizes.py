"""Sizes in bytes: read from what people write, and written as people read them. The only parser of sizes."""

from __future__ import annotations

import re
from fractions import Fraction
from numbers import Integral
from typing import Any

from taskmerge.errors import UsageError, clipped

WORDS = "a size such as 5GB, 500MB or 2GiB"
NEXT_MOVE = "write a number of bytes, or a number with a unit: 500MB (10^6), 5GB (10^9), 2GiB (2^30), 1TiB (2^40)"
_PREFIXES = "KMGTP"
UNITS: dict[str, int] = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(_PREFIXES, start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate(_PREFIXES, start=1)},
}
_BY_UPPER = {unit.upper(): size for unit, size in UNITS.items()}
LARGEST = 2**63 - 1
PATTERN = r"^ *[0-9]{1,20}(\.[0-9]{1,20})? *([kKmMgGtTpP]?[iI]?[bB])? *$"
"""Of the text, for JSON Schema too. ASCII digits only: other digits that Python knows (²) are not numbers here."""


def parse_size(value: Any) -> int:
    """Return the number of bytes that a number or a text means.

    Args:
        value: a whole number of bytes, or text: "5GB", "500 MiB", "2.5 GB", "1000". KB, MB, GB, TB and PB are
            powers of 1000; KiB, MiB, GiB, TiB and PiB are powers of 1024; upper and lower case mean the same.

    Returns:
        Bytes, at least 1. A fraction of a byte is dropped.

    Raises:
        UsageError: for anything else, and for sizes below one byte or beyond 2^63 - 1.
    """
    size = _bytes(value)
    if size is None:
        raise UsageError(f"{clipped(repr(value), 80)} is not a valid size", next_move=NEXT_MOVE)
    return size


def is_size(value: Any) -> bool:
    """Return whether `parse_size` takes the value."""
    return _bytes(value) is not None


def _bytes(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        number = Fraction(int(value))
    elif isinstance(value, float) and value.is_integer():
        number = Fraction(value)
    elif isinstance(value, str) and re.match(PATTERN, value):
        match = re.match(r" *([0-9.]+) *([A-Za-z]*)", value)
        assert match is not None
        unit = _BY_UPPER.get((match[2] or "B").upper())
        if unit is None:  # iB
            return None
        number = Fraction(match[1]) * unit
    else:
        return None
    return int(number) if 1 <= number <= LARGEST else None


def show_bytes(count: float) -> str:
    """Return bytes as people write them: "90.9 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
