"""Charts of a plane as inline SVG: points with a front, and heat maps."""

from __future__ import annotations

from taskmerge.reporting.charts import (
    BOTTOM,
    LEGEND_ROW,
    LETTER,
    PLOT_HEIGHT,
    TOP,
    drawing,
    fitted,
    grid_lines,
    number_text,
    padded,
    plot,
    x_axis,
)
from taskmerge.reporting.content import Dot, HeatMap, ScatterChart
from taskmerge.reporting.escaping import escape
from taskmerge.reporting.frames import WIDE, Frame


def scatter_chart(chart: ScatterChart, frame: Frame = WIDE) -> str:
    """Draw points with their names as tooltips; corners have visible names, the front is joined."""
    if not chart.dots:
        return ""
    x_low, x_high = padded(min(dot.x for dot in chart.dots), max(dot.x for dot in chart.dots))
    y_low, y_high = padded(min(dot.y for dot in chart.dots), max(dot.y for dot in chart.dots))
    at = plot(frame, x_low, x_high, y_low, y_high)
    parts = [*grid_lines(y_low, y_high, at, x_low, x_high), *x_axis(x_low, x_high, chart.x_label, frame)]
    parts.append(f'<text class="axis" x="0" y="12">{fitted(chart.y_label, frame.width)}</text>')
    front = sorted((dot.x, dot.y) for dot in chart.dots if dot.kind == "front")
    if len(front) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*place) for place in front))
        parts.append(f'<polyline class="joined" points="{path}"/>')
    for dot in sorted(chart.dots, key=lambda dot: dot.kind == "plain", reverse=True):
        parts += _drawn(dot, *at(dot.x, dot.y), frame.width)
    return drawing(TOP + PLOT_HEIGHT + BOTTOM, chart.title, parts, frame.width)


def _drawn(dot: Dot, x: float, y: float, width: float) -> list[str]:
    words = f"<title>{escape(dot.name)}: {number_text(dot.x)}, {number_text(dot.y)}</title>"
    parts = [f'<circle class="dot {dot.kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">{words}</circle>']
    if dot.kind == "corner":
        after = x + 8 + LETTER * len(dot.name) <= width or x < width / 2
        place = f'x="{x + 8:.1f}"' if after else f'text-anchor="end" x="{x - 8:.1f}"'
        words = fitted(dot.name, width - x - 8 if after else x - 8)
        parts.append(f'<text class="name" {place} y="{y + 4:.1f}">{words}</text>')
    return parts


def heat_map(chart: HeatMap, frame: Frame = WIDE) -> str:
    """Cells, the stronger the higher; empty ones are outlined. Values as tooltips, the ends of the scale beside them,
    in a narrow frame below."""
    known = [value for row in chart.rows for value in row if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    across = (frame.width - frame.left - frame.right) / (len(chart.x_edges) - 1)
    tall = PLOT_HEIGHT / (len(chart.y_edges) - 1)
    parts = []
    for number, row in enumerate(chart.rows):
        y = TOP + PLOT_HEIGHT - (number + 1) * tall
        parts.append(
            f'<text class="tick" text-anchor="end" x="{frame.left - 8:.1f}" y="{y + tall:.1f}">'
            f"{number_text(chart.y_edges[number])}</text>"
        )
        for column, value in enumerate(row):
            place = (
                f'x="{frame.left + column * across:.1f}" y="{y:.1f}" width="{across - 2:.1f}" height="{tall - 2:.1f}"'
            )
            if value is None:
                parts.append(f'<rect class="cell none" {place}/>')
                continue
            share = (value - low) / (high - low) if high > low else 1.0
            shade = f'style="opacity:{0.12 + 0.88 * share:.2f}"'
            parts.append(f'<rect class="cell" {place} {shade}><title>{value:.4f}</title></rect>')
    for column, edge in enumerate(chart.x_edges):
        if frame.narrow and column % 2:
            continue
        x = frame.left + column * across
        bottom = TOP + PLOT_HEIGHT + 18
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom}">{number_text(edge)}</text>')
    middle = (frame.left + frame.width - frame.right) / 2
    height = TOP + PLOT_HEIGHT + BOTTOM
    label = fitted(chart.x_label, frame.width - frame.left)
    parts.append(f'<text class="axis" text-anchor="middle" x="{middle:.1f}" y="{height - 4}">{label}</text>')
    parts.append(f'<text class="axis" x="0" y="12">{fitted(chart.y_label, frame.width)}</text>')
    x, y = (frame.left, height + 12) if frame.narrow else (frame.width - frame.right + 8, TOP + 12)
    for line, words in enumerate((f"pale: {number_text(low)}", f"strong: {number_text(high)}")):
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + LEGEND_ROW * line}">{words}</text>')
    return drawing(height + (2 * LEGEND_ROW if frame.narrow else 0), chart.title, parts, frame.width)
