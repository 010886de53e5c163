"""How wide a chart is drawn: for a window, and for a phone, where names have no room beside the picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """A drawing's width in pixels. left, right: beside a plot, for its numbers and its names. names: the widest column
    of names. narrow: names are above a row and below a plot, not beside them."""

    width: float
    left: float
    right: float
    names: float
    narrow: bool = False


WIDE = Frame(520, 52, 140, 200)
NARROW = Frame(330, 46, 14, 110, narrow=True)
