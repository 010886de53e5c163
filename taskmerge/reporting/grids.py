"""Matrices of names against names as inline SVG."""

from __future__ import annotations

from taskmerge.reporting.charts import drawing, fitted, names_room
from taskmerge.reporting.content import Matrix
from taskmerge.reporting.escaping import escape
from taskmerge.reporting.frames import WIDE, Frame

STRONGEST = 0.6
"""Opacity of a full cell: the number on it stays readable, light and dark."""
MOST_NUMBERS = 12
"""Names of a matrix whose cells still have room for numbers."""
WIDEST, LEAST, TALL, HEAD = 96.0, 36.0, 36.0, 26
"""Pixels: of a cell's width, of what a number needs, of a cell's height, above the cells."""


def matrix_chart(chart: Matrix, frame: Frame = WIDE) -> str:
    """Cells, the stronger the farther from zero, blue above and orange below it; the number on each.

    A matrix whose numbers do not fit into a narrow frame is drawn in the wide one.
    """
    count = len(chart.names)
    if not count or not any(value is not None for row in chart.rows for value in row):
        return ""
    numbered = count > MOST_NUMBERS
    names = [f"{place} {name}" if numbered else name for place, name in enumerate(chart.names, 1)]
    left = names_room(names, frame.names)
    wide = min(WIDEST, (frame.width - left) / count)
    if frame.narrow and wide < LEAST:
        return matrix_chart(chart)
    tall = min(TALL, wide)
    parts = []
    for place, name in enumerate(chart.names):
        middle = left + (place + 0.5) * wide
        head = fitted(str(place + 1) if numbered else name, wide - 4)
        parts.append(f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="16">{head}</text>')
        side = fitted(f"{place + 1} {name}" if numbered else name, left - 14)
        parts.append(f'<text class="name" x="0" y="{HEAD + (place + 0.5) * tall + 4:.1f}">{side}</text>')
    for down, row in enumerate(chart.rows):
        for across, value in enumerate(row):
            x, y = left + across * wide, HEAD + down * tall
            words = f"{chart.names[down]} and {chart.names[across]}: {_said(value)}"
            parts.append(_cell(value, x, y, wide, tall, words, numbered))
    return drawing(HEAD + count * tall + 4, chart.title, parts, left + count * wide)


def _cell(value: float | None, x: float, y: float, wide: float, tall: float, words: str, numbered: bool) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{tall - 2:.1f}"'
    told = f"<title>{escape(words)}</title>"
    if value is None:
        drawn = f'<rect class="cell none" {box}>{told}</rect>'
    else:
        shade = STRONGEST * min(abs(value), 1.0)
        kind = "cell below" if value < 0 else "cell"
        drawn = f'<rect class="{kind}" {box} style="opacity:{max(shade, 0.05):.2f}">{told}</rect>'
    if numbered:
        return drawn
    at = f'x="{x + wide / 2 - 1:.1f}" y="{y + tall / 2 + 3.5:.1f}"'
    return drawn + f'<text class="number" text-anchor="middle" {at}>{_said(value)}</text>'


def _said(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:.2f}".replace("-0.00", "0.00")
