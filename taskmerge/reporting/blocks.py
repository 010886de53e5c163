"""HTML of the blocks in a section: banners, tables, charts, texts to copy, and the terms that each uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskmerge.reporting.charts import line_chart, range_chart
from taskmerge.reporting.content import (
    Banner,
    Block,
    Cell,
    Chart,
    EmbeddingMap,
    LineChart,
    Matrix,
    RangeChart,
    ScatterChart,
    Table,
    Texts,
)
from taskmerge.reporting.escaping import escape
from taskmerge.reporting.grids import matrix_chart
from taskmerge.reporting.maps import embedding_map
from taskmerge.reporting.planes import heat_map, scatter_chart
from taskmerge.words.terms import TERMS, terms_in

MARKS = {"good": "✓", "bad": "✕", "open": "?", "plain": "·"}


def as_html(block: Block, explained: set[str]) -> str:
    """Return one block as a card. explained: terms explained on the page so far; those of this block are added."""
    if isinstance(block, Banner):
        return _banner(block)
    if isinstance(block, Table):
        if not block.rows:
            return ""
        inside = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(block.title)}">{_table(block)}</div>'
        )
    elif isinstance(block, Texts):
        inside = "".join(_folded(name, text) for name, text in block.texts)
    else:
        inside = chart(block)
        inside = f'<div class="scroll"><div class="drawn">{inside}</div></div>' if inside else ""
    if not inside:
        return ""
    found = terms_in(" ".join(_words(block)), explained)
    explained.update(found)
    return _card(block.title, inside, block.note, found)


def chart(block: Chart) -> str:
    """Return a chart as SVG; "" without anything to show."""
    if isinstance(block, LineChart):
        return line_chart(block)
    if isinstance(block, RangeChart):
        return range_chart(block)
    if isinstance(block, Matrix):
        return matrix_chart(block)
    if isinstance(block, EmbeddingMap):
        return embedding_map(block)
    return scatter_chart(block) if isinstance(block, ScatterChart) else heat_map(block)


def _banner(block: Banner) -> str:
    mark = f'<span class="mark-{block.tone}" aria-hidden="true">{MARKS[block.tone]}</span>'
    words = f'<div class="headline">{mark} {escape(block.headline)}</div>'
    words += f"<p>{escape(block.text)}</p>" if block.text else ""
    words += "".join(f'<p class="move"><strong>Next:</strong> {escape(move)}</p>' for move in block.moves)
    return f'<div class="card banner {block.tone}">{words}</div>'


def _words(block: Table | Chart | Texts) -> Iterator[str]:
    """What a block says that may need explaining; what people wrote themselves (names, texts) is not asked."""
    yield block.title
    yield block.note
    if isinstance(block, Table):
        yield from block.columns
        yield from (str(row[0]) for row in block.rows)
    elif isinstance(block, RangeChart):
        yield from (span.name for span in block.spans)
    elif isinstance(block, LineChart):
        yield from (block.x_label, block.y_label, *(line.name for line in block.lines))


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _card(title: str, inside: str, note: str, terms: Sequence[str]) -> str:
    under = f'<p class="note">{escape(note)}</p>' if note else ""
    if terms:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(TERMS[name])}</dd>" for name in terms)
        named = escape(", ".join(terms))
        under += f'<details class="terms"><summary>What it means: {named}</summary><dl>{rows}</dl></details>'
    return f'<div class="card"><h3>{escape(title)}</h3>{inside}{under}</div>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    named = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    of_words = ' class="words"' if table.words else ""
    return f"<table{of_words}>{named}<tbody>{''.join(_row(row) for row in table.rows)}</tbody></table>"


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
