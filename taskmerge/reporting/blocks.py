"""HTML of the blocks in a section: banners, tables, charts, texts to copy, and the terms that each uses."""

from __future__ import annotations

import re
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
from taskmerge.reporting.escaping import breakable, escape
from taskmerge.reporting.frames import NARROW, WIDE, Frame
from taskmerge.reporting.grids import matrix_chart
from taskmerge.reporting.maps import embedding_map
from taskmerge.reporting.planes import heat_map, scatter_chart
from taskmerge.words.terms import TERMS, terms_in

MARKS = {"good": "✓", "bad": "✕", "open": "?", "plain": "·"}
_LEFT = ' class="left"'
_WORD = re.compile(r"[^\W\d_]{3}")


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
        inside = "".join(_folded(name, text, len(block.texts) > 1) for name, text in block.texts)
    else:
        inside = _drawn(block)
    if not inside:
        return ""
    found = terms_in(" ".join(_words(block)), explained)
    explained.update(found)
    return _card(block.title, inside, block.note, found)


def chart(block: Chart, frame: Frame = WIDE) -> str:
    """Return a chart as SVG; "" without anything to show."""
    if isinstance(block, LineChart):
        return line_chart(block, frame)
    if isinstance(block, RangeChart):
        return range_chart(block, frame)
    if isinstance(block, Matrix):
        return matrix_chart(block, frame)
    if isinstance(block, EmbeddingMap):
        return embedding_map(block, frame)
    return scatter_chart(block, frame) if isinstance(block, ScatterChart) else heat_map(block, frame)


def _drawn(block: Chart) -> str:
    """A chart as the page shows it: drawn for a window and for a phone, of which the style sheet shows one."""
    wide, narrow = chart(block), chart(block, NARROW)
    if wide == narrow:
        return f'<div class="scroll"><div class="drawn">{wide}</div></div>' if wide else ""
    both = f'<div class="drawn wide">{wide}</div><div class="drawn narrow">{narrow}</div>'
    return f'<div class="scroll">{both}</div>'


def _banner(block: Banner) -> str:
    mark = f'<span class="mark-{block.tone}" aria-hidden="true">{MARKS[block.tone]}</span>'
    words = f'<div class="headline">{mark} {escape(block.headline)}</div>'
    words += f"<p>{escape(block.text)}</p>" if block.text else ""
    moves = (re.sub("`([^`]+)`", r"<code>\1</code>", escape(move)) for move in block.moves)
    words += "".join(f'<p class="move"><strong>Next:</strong> {move}</p>' for move in moves)
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


def _folded(name: str, text: str, many: bool) -> str:
    """many: one of several, which stay folded up on paper."""
    kind = ' class="many"' if many else ""
    return f"<details{kind}><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _card(title: str, inside: str, note: str, terms: Sequence[str]) -> str:
    under = f'<p class="note">{escape(note)}</p>' if note else ""
    if terms:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(TERMS[name])}</dd>" for name in terms)
        named = escape(", ".join(terms))
        under += f'<details class="terms"><summary>What it means: {named}</summary><dl>{rows}</dl></details>'
    return f'<div class="card"><h3>{escape(title)}</h3>{inside}{under}</div>'


def _table(table: Table) -> str:
    left = [_of_words(column) for column in zip(*table.rows, strict=True)]
    head = "".join(
        f'<th scope="col"{_LEFT if to_left else ""}>{breakable(column)}</th>'
        for column, to_left in zip(table.columns, left, strict=True)
    )
    named = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    of_words = ' class="words"' if table.words else ""
    return f"<table{of_words}>{named}<tbody>{''.join(_row(row, left) for row in table.rows)}</tbody></table>"


def _of_words(column: Sequence[Cell | str]) -> bool:
    """Whether a column holds words and no numbers, so that it begins at the left."""
    texts = [text for text in map(str, column) if text not in ("", "–")]
    return bool(texts) and all(_WORD.search(text) for text in texts)


def _row(row: Sequence[Cell | str], left: Sequence[bool]) -> str:
    first, *rest = (Cell(cell) if isinstance(cell, str) else cell for cell in row)
    cells = (f"<td{_LEFT if to_left else ''}>{_cell(cell)}</td>" for cell, to_left in zip(rest, left[1:], strict=True))
    return f'<tr><th scope="row">{_cell(first, name=True)}</th>{"".join(cells)}</tr>'


def _cell(cell: Cell, name: bool = False) -> str:
    """name: one that a row begins with."""
    text = breakable(cell.text) if name else escape(cell.text)
    text = f'<span class="strong">{text}</span>' if cell.strong else text
    if cell.detail:
        text += f' <span class="detail">{escape(cell.detail)}</span>'
    if cell.share is not None:
        width = 100 * min(max(cell.share, 0.0), 1.0)
        text += f'<div class="bar"><i style="width:{width:.1f}%"></i></div>'
    return text
