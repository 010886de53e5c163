"""Results as notebooks show them: one line, a small table, a pandas frame."""

from __future__ import annotations

import html
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from taskmerge.printable import printable_line
from taskmerge.words.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 20
"""Rows of a table that a notebook shows; the others are counted."""
_STYLE = "border-collapse: collapse; font-variant-numeric: tabular-nums"
_CELL = "padding: 0.15em 0.7em 0.15em 0; text-align: left; vertical-align: top; background: none; color: inherit"


@dataclass(frozen=True)
class Table:
    """Rows under names of columns. rows: may be made one by one; count: how many there are."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    count: int

    def html(self) -> str:
        """Return the first rows as an HTML table: no scripts, no colours of its own, every text escaped."""
        rows = list(islice(self.rows, SHOWN))
        if not rows:
            return ""
        head = "".join(f'<th style="{_CELL}">{escaped(name)}</th>' for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{escaped(_cell(one))}</td>' for one in row) + "</tr>" for row in rows
        )
        more = f"<p>and {self.count - len(rows):,} more rows</p>" if self.count > len(rows) else ""
        return f'<table style="{_STYLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}'


class Shown:
    """An object that displays itself in a notebook. Display reads no tensor and never fails.

    A subclass defines `in_one_line`, without its own name, and `as_table`.
    """

    @abstractmethod
    def in_one_line(self) -> str:
        """Return a summary in one line."""

    @abstractmethod
    def as_table(self) -> Table:
        """Return the content as rows."""

    def to_pandas(self) -> DataFrame:
        """Return the same rows as a `pandas.DataFrame`. Raises UsageError if pandas is not installed."""
        require("pandas")
        from pandas import DataFrame

        table = self.as_table()
        return DataFrame([list(row) for row in table.rows], columns=list(table.columns))

    def __repr__(self) -> str:
        try:
            return f"<{type(self).__name__} {printable_line(self.in_one_line())}>"
        except Exception as error:  # a repr is what debuggers, logs and tracebacks call
            return f"<{type(self).__name__}: {printable_line(f'{type(error).__name__}: {error}')[:200]}>"

    def _repr_html_(self) -> str:
        try:
            head = f"<p><strong>{type(self).__name__}</strong> {escaped(self.in_one_line())}</p>"
            return f"<div>{head}{self.as_table().html()}</div>"
        except Exception:
            return f"<div><p>{escaped(repr(self))}</p></div>"


def escaped(text: str) -> str:
    """Return a foreign text in a form that is safe in HTML."""
    return html.escape(printable_line(text), quote=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def counted(count: int, one: str) -> str:
    """Return a number with its noun: "1 tensor", "2 tensors"."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"
