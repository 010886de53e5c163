"""Whole numbers inside names and options: ASCII digits only. str.isdigit() also takes "²", which int() refuses."""

from __future__ import annotations


def is_whole(text: str) -> bool:
    """Return whether a text is a whole number of at most 18 ASCII digits: "12", but not "²", "٣", "-1" or ""."""
    return len(text) <= 18 and text.isascii() and text.isdigit()
