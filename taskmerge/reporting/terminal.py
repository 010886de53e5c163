"""A report on a terminal: banners and tables; charts are for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskmerge.reporting.content import Banner, RangeChart, Section, Table
from taskmerge.reporting.page import MARKS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

COLORS = {"good": "green", "bad": "red", "open": "yellow", "plain": "white"}


def show(sections: Sequence[Section], console: Console | None = None) -> None:
    """Print what a terminal can show of the sections. console: default: standard output."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = console or Console()
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Banner):
                head = f"{MARKS[block.tone]} {block.headline}"
                console.print(Panel(Text(block.text), title=Text(head, COLORS[block.tone]), title_align="left"))
            elif isinstance(block, Table):
                console.print(_table(block))
            elif isinstance(block, RangeChart):
                console.print(_table(_spans(block)))


def _table(table: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*(Text(str(cell), "bold" if getattr(cell, "strong", False) else "") for cell in row))
    return drawn


def _spans(chart: RangeChart) -> Table:
    rows = []
    for span in chart.spans:
        edge = "" if span.band is None else f"{'≥' if span.worse_when_low else '≤'} {span.band:.3f}"
        rows.append([span.name, f"{span.value:.3f}", f"{span.low:.3f} to {span.high:.3f}", edge])
    return Table(chart.title, ["statistic", "mean", "95 % interval", "null band"], rows)
