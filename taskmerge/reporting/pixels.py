"""The charts of a report as PNG files, for slides and chats that show no SVG; drawn by matplotlib (extra [plots])."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taskmerge.printable import printable_line
from taskmerge.reporting.content import HeatMap, LineChart, ScatterChart, Section
from taskmerge.reporting.pictures import picture_name
from taskmerge.words.extras import require
from taskmerge.words.system_errors import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (6.4, 4.0)
DOTS_AN_INCH = 144
PLAIN = "#52514e"
COLORS = ("#2a78d6", "#d9541e", "#12805a", "#7a4fc9", "#b8860b", "#c23b80")
DOTS = {"plain": PLAIN, "front": COLORS[1], "corner": COLORS[0]}


def write_pixels(folder: Path, sections: Sequence[Section]) -> list[Path]:
    """Write line charts, planes and heat maps as PNG, named as the SVG files. Returns their paths.

    Raises:
        UsageError: without matplotlib.
        OutputError: when a file cannot be written.
    """
    require("matplotlib")
    written = []
    for block in (block for section in sections for block in section.blocks):
        if not isinstance(block, LineChart | ScatterChart | HeatMap) or (drawn := _drawn(block)) is None:
            continue
        path = folder / f"{picture_name(block.title)}.png"
        with writing(path):
            path.write_bytes(drawn)
        written.append(path)
    return written


def _drawn(block: LineChart | ScatterChart | HeatMap) -> bytes | None:
    """A chart as the bytes of a PNG; None for one without anything to show."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="tight")
    axes = figure.subplots()
    if isinstance(block, LineChart):
        shown = _lines(block, axes)
    else:
        shown = _dots(block, axes) if isinstance(block, ScatterChart) else _cells(block, axes)
    if not shown:
        return None
    # a dollar sign in a name begins no formula
    axes.set_title(printable_line(block.title), parse_math=False)
    axes.set_xlabel(printable_line(block.x_label), parse_math=False)
    axes.set_ylabel(printable_line(block.y_label), parse_math=False)
    bytes_of = io.BytesIO()
    figure.savefig(bytes_of, dpi=DOTS_AN_INCH, format="png", metadata={"Software": "drawn by taskmerge"})
    return bytes_of.getvalue()


def _lines(chart: LineChart, axes: Axes) -> bool:
    """Lines with their intervals shaded."""
    for number, line in enumerate(chart.lines):
        color = COLORS[number % len(COLORS)]
        xs = [x for x, _ in line.points]
        ys = [np.nan if y is None else y for _, y in line.points]
        axes.plot(xs, ys, "o-", color=color, label=f"{printable_line(line.name)} ")  # "_…" would be left out
        if line.intervals:
            low, high = zip(*line.intervals, strict=True)
            axes.fill_between(xs, low, high, color=color, alpha=0.18, linewidth=0)
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    if len(chart.lines) > 1:
        for text in axes.legend().get_texts():
            text.set_parse_math(False)
    return any(line.points for line in chart.lines)


def _dots(chart: ScatterChart, axes: Axes) -> bool:
    """Points, the front joined, corners named."""
    for kind, color in DOTS.items():
        places = [(dot.x, dot.y) for dot in chart.dots if dot.kind == kind]
        if kind == "front" and len(places) > 1:
            axes.plot(*zip(*sorted(places), strict=True), color=color, linewidth=1)
        if places:
            axes.scatter(*zip(*places, strict=True), color=color, alpha=0.55 if kind == "plain" else 1.0, zorder=3)
    for dot in chart.dots:
        if dot.kind == "corner":
            axes.annotate(printable_line(dot.name), (dot.x, dot.y), (5, 4), textcoords="offset points",
                          parse_math=False)  # fmt: skip
    return bool(chart.dots)


def _cells(chart: HeatMap, axes: Axes) -> bool:
    """A grid of cells with its scale; empty ones are left white."""
    values = np.array([[np.nan if value is None else value for value in row] for row in chart.rows], dtype=np.float64)
    if not np.isfinite(values).any():
        return False
    drawn = axes.pcolormesh(chart.x_edges, chart.y_edges, values, cmap="viridis")
    axes.figure.colorbar(drawn, ax=axes)
    return True
