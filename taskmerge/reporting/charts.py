"""Charts as inline SVG: no library, no script, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from taskmerge.reporting.content import Line, LineChart, RangeChart, Span
from taskmerge.reporting.escaping import escape
from taskmerge.reporting.frames import WIDE, Frame

TOP, BOTTOM = 22, 40
PLOT_HEIGHT = 220
ROW, TALL_ROW = 34, 46
"""Of a range chart: with its name beside it, and above it."""
ABOVE, BELOW = 6, 26
"""Above and below the rows of a range chart."""
LEGEND_ROW = 18
MOST_DOTS = 60
"""Points of a line that are drawn as dots; more would hide it."""
COLORS = 6
SMALL, STRETCHED = 340, 1.29
LEAST_ROOM = 0.005
LETTER = 6.4
"""Pixels that a letter takes, on the mean."""

Scale = Callable[[float], float]
Place = Callable[[float, float], tuple[float, float]]


def line_chart(chart: LineChart, frame: Frame = WIDE) -> str:
    """Draw lines with their names at their ends, grid lines behind, and each point's value as its tooltip.

    In a narrow frame the names are below. The name of a single line is left out where the axis has it.
    """
    drawn = [line for line in chart.lines if _known(line)]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in _known(line)]
    ys = [y for line in drawn for _, y in _known(line)]
    ys += [edge for line in drawn for interval in line.intervals for edge in interval]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = chart.y_range or padded(min(ys), max(ys))
    unnamed = len(drawn) == 1 and drawn[0].name == chart.y_label
    if unnamed:
        frame = replace(frame, right=min(frame.right, 20))
    at = plot(frame, x_low, x_high, y_low, y_high)
    whole = all(float(x).is_integer() for x in xs)
    parts = [*grid_lines(y_low, y_high, at, x_low, x_high), *x_axis(x_low, x_high, chart.x_label, frame, whole)]
    parts.append(f'<text class="axis" x="0" y="12">{fitted(chart.y_label, frame.width)}</text>')
    for number, line in enumerate(drawn):
        parts += _drawn_line(line, number, at)
    height = TOP + PLOT_HEIGHT + BOTTOM
    if frame.narrow and not unnamed:
        parts += _names_below(drawn, height, frame)
        height += LEGEND_ROW * len(drawn)
    elif not unnamed:
        parts += _names_at_ends(drawn, at, frame)
    return drawing(height, chart.title, parts, frame.width)


def plot(frame: Frame, x_low: float, x_high: float, y_low: float, y_high: float) -> Place:
    """Return the function from a point of these ranges to its place in the drawing."""

    def at(x: float, y: float) -> tuple[float, float]:
        across = frame.left + (x - x_low) / (x_high - x_low) * (frame.width - frame.left - frame.right)
        return across, TOP + (1 - (y - y_low) / (y_high - y_low)) * PLOT_HEIGHT

    return at


def range_chart(chart: RangeChart, frame: Frame = WIDE) -> str:
    """Draw a dot and its interval per row; the null band is shaded, and a square marks a value outside it."""
    if not chart.spans:
        return ""
    edges = [edge for span in chart.spans for edge in (span.low, span.high, span.value, span.band) if edge is not None]
    edges += [0.0] if chart.zero else []
    low, high = padded(min(edges), max(edges))
    side = 8 if frame.narrow else names_room((span.name for span in chart.spans), frame.names)
    row = TALL_ROW if frame.narrow else ROW
    bottom = ABOVE + row * len(chart.spans)

    def across(value: float) -> float:
        return side + (value - low) / (high - low) * (frame.width - side - (8 if frame.narrow else 24))

    parts = []
    for tick, text in ticks(low, high, 5 if frame.narrow else 8):
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{ABOVE}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 18}">{text}</text>')
    if low < 0 < high:
        parts.append(f'<line class="zero" x1="{across(0):.1f}" y1="{ABOVE}" x2="{across(0):.1f}" y2="{bottom}"/>')
    for number, span in enumerate(chart.spans):
        middle = ABOVE + row * (number + 0.5) + (8 if frame.narrow else 0)
        named = middle - 12 if frame.narrow else middle + 4
        name = fitted(span.name, frame.width - 8 if frame.narrow else frame.names - 14)
        parts.append(f'<text class="name" x="0" y="{named:.1f}">{name}</text>')
        parts += _drawn_span(span, middle, across, low, high)
    return drawing(bottom + BELOW, chart.title, parts, frame.width)


def _drawn_span(span: Span, y: float, across: Scale, low: float, high: float) -> list[str]:
    outside = span.band is not None and (span.value < span.band if span.worse_when_low else span.value > span.band)
    parts = []
    if span.band is not None:
        edge = "at least" if span.worse_when_low else "at most"
        start, stop = (span.band, high) if span.worse_when_low else (low, span.band)
        parts.append(
            f'<rect class="band" x="{across(start):.1f}" y="{y - 11:.1f}" width="{across(stop) - across(start):.1f}" '
            f'height="22"><title>null band: {edge} {span.band:.3f}</title></rect>'
        )
    kind = "outside" if outside else "inside"
    ends = f'x1="{across(span.low):.1f}" y1="{y:.1f}" x2="{across(span.high):.1f}" y2="{y:.1f}"'
    parts.append(f'<line class="interval {kind}" {ends}/>')
    words = f"<title>{escape(span.name)}: {span.value:.3f} [{span.low:.3f}, {span.high:.3f}]</title>"
    x = across(span.value)
    if outside:
        parts.append(f'<rect class="mark {kind}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10">{words}</rect>')
    else:
        parts.append(f'<circle class="mark {kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">{words}</circle>')
    return parts


def _drawn_line(line: Line, number: int, at: Place) -> list[str]:
    color = f"c{number % COLORS}"
    points = [at(x, y) for x, y in _known(line)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [_band(line, color, at)] if line.intervals else []
    parts.append(f'<polyline class="line {color}" points="{path}"/>')
    kind = "dot hidden" if len(points) > MOST_DOTS else "dot"
    for (x, y), (raw_x, raw_y) in zip(points, _known(line), strict=True):
        words = f"<title>{escape(line.name)} at {number_text(raw_x)}: {raw_y:.4g}</title>"
        parts.append(f'<circle class="{kind} {color}" cx="{x:.1f}" cy="{y:.1f}" r="4">{words}</circle>')
    return parts


def _names_at_ends(lines: Sequence[Line], at: Place, frame: Frame) -> list[str]:
    last = [at(*_known(line)[-1]) for line in lines]
    edge, parts = frame.width - frame.right, []
    for number, ((x, y), end) in enumerate(zip(last, _spread([y for _, y in last]), strict=True)):
        parts.append(f'<line class="leader" x1="{x + 6:.1f}" y1="{y:.1f}" x2="{edge + 14:.1f}" y2="{end:.1f}"/>')
        parts += _key(lines[number].name, number, edge + 16, end, frame.right - 30)
    return parts


def _names_below(lines: Sequence[Line], top: float, frame: Frame) -> list[str]:
    heights = (top + LEGEND_ROW * (number + 0.5) for number in range(len(lines)))
    keys = (_key(line.name, n, frame.left, y, frame.width - frame.left - 12) for n, (line, y) in
            enumerate(zip(lines, heights, strict=True)))  # fmt: skip
    return [part for key in keys for part in key]


def _key(name: str, number: int, x: float, y: float, room: float) -> list[str]:
    square = f'<rect class="key c{number % COLORS}" x="{x:.1f}" y="{y - 4:.1f}" width="8" height="8" rx="2"/>'
    return [square, f'<text class="name" x="{x + 12:.1f}" y="{y + 4:.1f}">{fitted(name, room)}</text>']


def _band(line: Line, color: str, at: Place) -> str:
    """The intervals around a line."""
    xs = [x for x, _ in line.points]
    upper = [at(x, high) for x, (_, high) in zip(xs, line.intervals, strict=True)]
    lower = [at(x, low) for x, (low, _) in zip(xs, line.intervals, strict=True)]
    edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
    return f'<polygon class="around {color}" points="{edge}"/>'


def grid_lines(y_low: float, y_high: float, at: Place, x_low: float, x_high: float) -> list[str]:
    """Return horizontal grid lines with their labels, as SVG."""
    parts = []
    for tick, text in ticks(y_low, y_high):
        (left, y), (right, _) = at(x_low, tick), at(x_high, tick)
        parts.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{left - 8:.1f}" y="{y + 4:.1f}">{text}</text>')
    return parts


def x_axis(low: float, high: float, label: str, frame: Frame = WIDE, whole: bool = False) -> list[str]:
    """Return the axis as SVG. whole: for whole numbers, such as layers, without ticks between them."""
    bottom = TOP + PLOT_HEIGHT
    parts = []
    for tick, text in ticks(low, high, 5 if frame.narrow else 8):
        if whole and not math.isclose(tick, round(tick), abs_tol=1e-9):
            continue
        x = frame.left + (tick - low) / (high - low) * (frame.width - frame.left - frame.right)
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 18}">{text}</text>')
    middle = (frame.left + frame.width - frame.right) / 2
    words = fitted(label, frame.width - frame.left)
    parts.append(f'<text class="axis" text-anchor="middle" x="{middle:.1f}" y="{bottom + 36}">{words}</text>')
    return parts


def fitted(text: str, room: float) -> str:
    """Return a label as escaped text of at most `room` pixels.

    The middle of a longer one is left out, and the complete label is its tooltip.
    """
    most = max(3, int(room / LETTER))
    if len(text) <= most:
        return escape(text)
    head = (most - 1) // 2
    tail = most - 1 - head
    return f"{escape(text[:head])}…{escape(text[-tail:])}<title>{escape(text)}</title>"


def names_room(names: Iterable[str], most: float = WIDE.names) -> float:
    """Return the width of a column of names in pixels: as the longest needs, at most `most`."""
    return min(most, LETTER * max((len(name) for name in names), default=0) + 14)


def drawing(height: float, title: str, parts: Sequence[str], width: float = WIDE.width) -> str:
    """Return the picture. width: of the drawing; a narrow one is not stretched, and fits a phone."""
    small = ' class="small"' if width < SMALL else ""
    limit = "" if width >= WIDE.width else f' style="max-width:{width * STRETCHED:.0f}px"'
    head = f'<svg{small}{limit} viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _known(line: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in line.points if y is not None and math.isfinite(y)]


def padded(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis. A range that is tiny compared with its values is widened: rounding is invisible."""
    least = LEAST_ROOM * max(abs(low), abs(high))
    room = max(0.06 * (high - low), least) if high > low else 0.1 * abs(high) or 0.1
    return low - room, high + room


def ticks(low: float, high: float, wanted: int = 8) -> list[tuple[float, str]]:
    """Round numbers in [low, high], `wanted` of them at most, each with as many digits as tell it from the next."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    found = [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, _tick_text(value, digits)) for value in found]


def _tick_text(value: float, digits: int) -> str:
    if digits > 6 or abs(value) >= 1e7:
        return f"{value:.3g}"
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def number_text(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}".replace("-0", "0") if abs(value) < 1e-12 else f"{value:.3g}"


def _spread(heights: Sequence[float], gap: float = 16) -> list[float]:
    """Label heights moved apart so that none covers another, in the order given."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = list(heights)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    over = max(placed, default=0) - (TOP + PLOT_HEIGHT)
    return [height - max(0.0, over) for height in placed]
