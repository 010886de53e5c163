"""A map of embeddings as inline SVG: places of items before and after, among the texts."""

from __future__ import annotations

from taskmerge.reporting.charts import drawing, padded
from taskmerge.reporting.content import EmbeddingMap
from taskmerge.reporting.escaping import escape
from taskmerge.reporting.frames import WIDE, Frame

HEIGHT, LEGEND, BELOW, LINE = 340, 26, 24, 16


def embedding_map(chart: EmbeddingMap, frame: Frame = WIDE) -> str:
    """Draw each item's path from a ring (before) to a dot (after), texts as squares; names as tooltips.

    Both axes have the same scale, so that distances may be compared.
    """
    points = [place for item in chart.moved for place in (item.before, item.after)] + list(chart.fixed.values())
    if not points:
        return ""
    x_low, x_high = padded(min(x for x, _ in points), max(x for x, _ in points))
    y_low, y_high = padded(min(y for _, y in points), max(y for _, y in points))
    scale = min(frame.width / (x_high - x_low), HEIGHT / (y_high - y_low))
    left = (frame.width - scale * (x_high - x_low)) / 2
    bottom = LEGEND + scale * (y_high - y_low)

    def at(place: tuple[float, float]) -> tuple[float, float]:
        return left + scale * (place[0] - x_low), bottom - scale * (place[1] - y_low)

    parts = _legend()
    for name, place in chart.fixed.items():
        x, y = at(place)
        words = f"<title>text: {escape(name)}</title>"
        parts.append(f'<rect class="dot text" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6">{words}</rect>')
    for item in chart.moved:
        (x1, y1), (x2, y2) = at(item.before), at(item.after)
        words = f"<title>{escape(item.name)}</title>"
        parts.append(f'<line class="moved" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        parts.append(f'<circle class="dot before" cx="{x1:.1f}" cy="{y1:.1f}" r="4">{words}</circle>')
        parts.append(f'<circle class="dot after" cx="{x2:.1f}" cy="{y2:.1f}" r="4">{words}</circle>')
    axes = [f"across: {chart.x_label}", f"up: {chart.y_label}"]
    for number, words in enumerate(axes if frame.narrow else ["; ".join(axes)]):
        y = bottom + 16 + LINE * number
        parts.append(f'<text class="axis" x="0" y="{y:.1f}">{escape(words)}</text>')
    return drawing(bottom + BELOW + (LINE if frame.narrow else 0), chart.title, parts, frame.width)


def _legend() -> list[str]:
    return [
        '<circle class="dot before" cx="6" cy="10" r="4"/><text class="name" x="16" y="14">specialist</text>',
        '<circle class="dot after" cx="96" cy="10" r="4"/><text class="name" x="106" y="14">fused</text>',
        '<rect class="dot text" x="155" y="7" width="6" height="6"/><text class="name" x="168" y="14">texts</text>',
    ]
