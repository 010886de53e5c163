"""One HTML page that needs nothing beside itself: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence

from taskmerge.reporting.charts import line_chart, range_chart
from taskmerge.reporting.content import (
    Banner,
    Block,
    Cell,
    HeatMap,
    LineChart,
    RangeChart,
    ScatterChart,
    Section,
    Table,
    Texts,
)
from taskmerge.reporting.escaping import escape
from taskmerge.reporting.planes import heat_map, scatter_chart

MARKS = {"good": "✓", "bad": "✕", "open": "?", "plain": "·"}

GENERATOR = '<meta name="generator" content="taskmerge">'
"""By which a page of ours is known."""

STYLE = """
:root { color-scheme: light dark; --page: #f9f9f7; --card: #ffffff; --ink: #0b0b0b; --soft: #52514e; --faint: #dddcd6;
  --good: #0a7a3d; --bad: #b3261e; --open: #8a5a00; --band: #e6efe9;
  --c0: #2a78d6; --c1: #d9541e; --c2: #12805a; --c3: #7a4fc9; --c4: #b8860b; --c5: #c23b80; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #20201e; --ink: #f4f4f2; --soft: #b5b4ae;
  --faint: #3b3b38; --good: #57c98a; --bad: #ff8a80; --open: #f0b95a; --band: #27382e;
  --c0: #6aa8f0; --c1: #f08a5d; --c2: #4cc394; --c3: #b39af0; --c4: #e0b84a; --c5: #ee84b6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; } .lead { color: var(--soft); margin: 0; }
.card { background: var(--card); border: 1px solid var(--faint); border-radius: 10px;
  padding: 1rem 1.25rem; margin: 0 0 1rem; }
.banner { border-left: 6px solid var(--soft); } .banner p { margin: .25rem 0 0; color: var(--soft); }
.banner.good { border-left-color: var(--good); } .banner.bad { border-left-color: var(--bad); }
.banner.open { border-left-color: var(--open); } .mark-good { color: var(--good); } .mark-bad { color: var(--bad); }
.mark-open { color: var(--open); } .headline { font-weight: 650; font-size: 1.1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--faint); vertical-align: top; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 600; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; } tbody th { font-weight: 500; }
.detail { color: var(--soft); font-size: .82rem; white-space: nowrap; } .strong { font-weight: 700; }
.bar { height: 4px; border-radius: 2px; background: var(--faint); margin-top: .25rem; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--c0); }
.note { color: var(--soft); font-size: .85rem; margin: .5rem 0 0; }
summary { cursor: pointer; } pre { overflow-x: auto; font-size: .8rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .tick, svg .axis { fill: var(--soft); } .grid { stroke: var(--faint); } .zero { stroke: var(--soft); }
.leader { stroke: var(--faint); } .line { fill: none; stroke-width: 2; }
.dot { stroke: var(--card); stroke-width: 1.5; }
.around { opacity: .18; } .around, .cell { stroke: none; } .cell { fill: var(--c0); }
.cell.none { fill: none; stroke: var(--faint); } .joined { fill: none; stroke: var(--c1); stroke-width: 2; }
.dot.plain { fill: var(--soft); opacity: .55; } .dot.front { fill: var(--c1); } .dot.corner { fill: var(--c0); }
.band { fill: var(--band); } .interval { stroke-width: 2; } .interval.inside { stroke: var(--c0); }
.interval.outside { stroke: var(--bad); } .mark.inside { fill: var(--c0); } .mark.outside { fill: var(--bad); }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.c4 { fill: var(--c4); } .c5 { fill: var(--c5); } .line { fill: none !important; }
"""


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page. Every text is escaped."""
    body = "".join(_section(section) for section in sections if section.blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"{GENERATOR}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}</main></body></html>\n'
    )


def _section(section: Section) -> str:
    return f"<section><h2>{escape(section.title)}</h2>{''.join(_block(block) for block in section.blocks)}</section>"


def _block(block: Block) -> str:
    if isinstance(block, Banner):
        mark = f'<span class="mark-{block.tone}" aria-hidden="true">{MARKS[block.tone]}</span>'
        words = f'<div class="headline">{mark} {escape(block.headline)}</div><p>{escape(block.text)}</p>'
        return f'<div class="card banner {block.tone}">{words}</div>'
    if isinstance(block, Table):
        return _card(block.title, f'<div class="scroll">{_table(block)}</div>', block.note)
    if isinstance(block, Texts):
        return _card(block.title, "".join(_folded(name, text) for name, text in block.texts), block.note)
    drawn = chart(block)
    return _card(block.title, drawn, block.note) if drawn else ""


def chart(block: LineChart | RangeChart | ScatterChart | HeatMap) -> str:
    """A chart as SVG; "" for one without anything to show."""
    if isinstance(block, LineChart):
        return line_chart(block)
    if isinstance(block, RangeChart):
        return range_chart(block)
    return scatter_chart(block) if isinstance(block, ScatterChart) else heat_map(block)


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _card(title: str, inside: str, note: str) -> str:
    under = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{inside}{under}</div>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    named = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    return f"<table>{named}<tbody>{''.join(_row(row) for row in table.rows)}</tbody></table>"


def _row(row: Sequence[Cell | str]) -> str:
    first, *rest = (Cell(cell) if isinstance(cell, str) else cell for cell in row)
    return f'<tr><th scope="row">{_cell(first)}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in rest)}</tr>'


def _cell(cell: Cell) -> str:
    text = f'<span class="strong">{escape(cell.text)}</span>' if cell.strong else escape(cell.text)
    if cell.detail:
        text += f' <span class="detail">{escape(cell.detail)}</span>'
    if cell.share is not None:
        width = 100 * min(max(cell.share, 0.0), 1.0)
        text += f'<div class="bar"><i style="width:{width:.1f}%"></i></div>'
    return text
