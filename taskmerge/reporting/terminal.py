"""A report in a terminal: banners and tables, charts as tables of their values; tab-separated without a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskmerge.printable import printable, printable_line
from taskmerge.reporting.blocks import MARKS
from taskmerge.reporting.content import (
    Banner,
    Block,
    Chart,
    EmbeddingMap,
    HeatMap,
    LineChart,
    Matrix,
    RangeChart,
    ScatterChart,
    Section,
    Table,
    Texts,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

COLORS = {"good": "green", "bad": "red", "open": "yellow", "plain": "white"}
MOST_POINTS = 13


def show(sections: Sequence[Section], console: Console | None = None) -> None:
    """Print the sections. console: default: standard output."""
    from rich.console import Console

    console = console or Console(markup=False, highlight=False, emoji=False)
    for section in sections:
        for block in section.blocks:
            (_draw if console.is_terminal else _write)(block, console)


def _draw(block: Block, console: Console) -> None:
    from rich.panel import Panel
    from rich.text import Text

    if isinstance(block, Banner):
        head = Text(printable_line(_head(block)), COLORS[block.tone])
        console.print(Panel(Text(printable(_said(block))), title=head, title_align="left"))
    else:
        table = _tabular(block)
        console.print(_table(table))
        if table.note:
            console.print(Text(printable(table.note), "dim"))


def _write(block: Block, console: Console) -> None:
    if isinstance(block, Banner):
        lines = [printable_line(_head(block)), printable(_said(block))]
    else:
        table = _tabular(block)
        rows = (table.columns, *table.rows)
        lines = [printable_line(table.title), *("\t".join(printable_line(str(cell)) for cell in row) for row in rows)]
        lines += [printable(table.note)] if table.note else []
    print("\n".join(lines), end="\n\n", file=console.file)


def _head(banner: Banner) -> str:
    return f"{MARKS[banner.tone]} {banner.headline}"


def _said(banner: Banner) -> str:
    return "\n".join([banner.text, *(f"next: {move}" for move in banner.moves)]).strip()


def _tabular(block: Table | Chart | Texts) -> Table:
    if isinstance(block, RangeChart):
        return _spans(block)
    if isinstance(block, ScatterChart):
        rows = [[dot.name, f"{dot.x:.4g}", f"{dot.y:.4g}"] for dot in block.dots]
        return Table(block.title, ["", block.x_label, block.y_label], rows, block.note)
    if isinstance(block, HeatMap):
        return _cells(block)
    if isinstance(block, Matrix):
        cells = [["–" if value is None else f"{value:.3f}" for value in row] for row in block.rows]
        rows = [[name, *row] for name, row in zip(block.names, cells, strict=True)]
        return Table(block.title, ["", *block.names], rows, block.note)
    if isinstance(block, EmbeddingMap):
        return Table(
            block.title, ["on the page"], [[f"{len(block.moved)} items, {len(block.fixed)} texts"]], block.note
        )
    if isinstance(block, Texts):
        return Table(block.title, [""], [[name] for name, _ in block.texts], block.note)
    return _points(block) if isinstance(block, LineChart) else block


def _table(table: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=Text(printable_line(table.title)), title_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(printable_line(column)), justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(
            *(Text(printable_line(str(cell)), "bold" if getattr(cell, "strong", False) else "") for cell in row)
        )
    return drawn


def _spans(chart: RangeChart) -> Table:
    rows = []
    for span in chart.spans:
        edge = "" if span.band is None else f"{'≥' if span.worse_when_low else '≤'} {span.band:.3f}"
        rows.append([span.name, f"{span.value:.3f}", f"{span.low:.3f} to {span.high:.3f}", edge])
    return Table(chart.title, ["statistic", "mean", "95 % interval", "null band"], rows)


def _cells(chart: HeatMap) -> Table:
    """Rows from the top down, each named by its lower edge."""
    rows = [
        [f"{edge:.3g}", *("–" if value is None else f"{value:.3g}" for value in row)]
        for edge, row in reversed(list(zip(chart.y_edges, chart.rows, strict=False)))
    ]
    return Table(chart.title, [f"{chart.y_label} \\ {chart.x_label}", *(f"{x:.3g}" for x in chart.x_edges[:-1])], rows)


def _points(chart: LineChart) -> Table:
    """Evenly spaced points where there are too many, first and last among them."""
    places = sorted({x for line in chart.lines for x, _ in line.points})
    if len(places) > MOST_POINTS:
        places = [places[round(i * (len(places) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    values = [dict(line.points) for line in chart.lines]
    rows = [[f"{x:g}", *("–" if (y := line.get(x)) is None else f"{y:.3f}" for line in values)] for x in places]
    return Table(chart.title, [chart.x_label, *(line.name for line in chart.lines)], rows, chart.note)
