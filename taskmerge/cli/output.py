"""Printing for all commands: data on stdout, progress and messages on stderr. Nothing else in `cli/` prints.

Names are plain text here: control characters are escaped, and nothing is interpreted as markup.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskmerge.cli.streams import results, unwashed
from taskmerge.cli.verbosity import verbosity
from taskmerge.errors import TaskmergeError
from taskmerge.printable import printable, printable_json, printable_line
from taskmerge.words.sizes import show_bytes

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_INTERVAL = 5.0
_WARNING = "warning: "


def report_error(error: TaskmergeError) -> None:
    """Write the problems to stderr, numbered if there are several."""
    print(f"taskmerge: {len(error.problems)} problems" if len(error.problems) > 1 else "taskmerge:", file=sys.stderr)
    for line in str(error).splitlines():
        print(line if line.startswith("    ") else f"  {line}", file=sys.stderr)


def note(text: str) -> None:
    """Print a line for the reader, not for machines. A quiet command prints only those that begin with "warning: "."""
    if not verbosity.quiet or text.startswith(_WARNING):
        print(printable(text), file=sys.stderr)


def say(text: object) -> None:
    """Print a line of the command's result: the place of its output, or its findings."""
    print(printable(str(text)))


def announce_notes(here: bool = True) -> None:
    """Print assumptions about a checkpoint once when it is opened. here: False where a plan prints them itself."""
    from taskmerge.checkpoints.formats.reading import on_note

    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            note(f"{_WARNING}{text}")

    on_note(say if here else lambda text: None)


def announce_preparing() -> None:
    """Print one line if kernels must first be built for this processor, which takes seconds."""
    from taskmerge.kernels import on_prepare

    on_prepare(lambda: note("Preparing kernels for this processor (once)…"))


def print_json(data: Any) -> None:
    """Print data for machines. Numbers that JSON does not have (NaN, infinity) become null."""
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, default=str, allow_nan=False)
    print(printable_json(text), file=results())
    _printed.append(True)


_printed: list[bool] = []


def report_error_as_json(error: TaskmergeError, exit_code: int) -> None:
    """Print an error as JSON in place of the result; if a result is already printed, print nothing."""
    if _printed:
        return
    problems = [{"what": one.what, "place": one.place, "next_move": one.next_move} for one in error.problems]
    kind = type(error).__name__
    print_json({"error": {"kind": kind, "text": str(error), "problems": problems, "exit_code": exit_code}})


def begin_printing() -> None:
    """Note that no result of this command is printed yet."""
    _printed.clear()


def next_move(text: str) -> None:
    """Print the next move for the reader."""
    note(f"next: {text}")


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print a table: drawn on a terminal, tab-separated otherwise."""
    heads = [printable_line(column) for column in columns]
    table_rows = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        print("\t".join(heads))
        for row in table_rows:
            print("\t".join(row))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title and Text(printable_line(title)), title_justify="left")
    for head in heads:
        table.add_column(Text(head))
    for row in table_rows:
        table.add_row(*map(Text, row))
    console().print(table)


def console(*, stderr: bool = False) -> Console:
    """Return a console for drawing, without markup and automatic highlighting."""
    from rich.console import Console

    colors = "NO_COLOR" in os.environ or None
    file = unwashed(sys.stderr if stderr else sys.stdout)
    return Console(file=file, no_color=colors, markup=False, highlight=False, emoji=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else printable_line(str(value))


@contextlib.contextmanager
def progress(total: int, title: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a callable for progress in bytes: it shows a bar with rate and remaining time, or a line every few
    seconds."""
    if quiet or verbosity.quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(total, title) as advance:
            yield advance
    else:
        yield _Lines(total, title)


@contextlib.contextmanager
def _bar(total: int, title: str) -> Iterator[Callable[[int], None]]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """Progress for logs."""

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title, self.done = total, title, 0
        self.began = self.shown = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown < _PLAIN_INTERVAL:
            return
        self.shown = now
        if self.done < self.total / 100:
            note(f"{self.title}: {show_bytes(self.done)} of {show_bytes(self.total)}")
            return
        rate = self.done / (now - self.began)
        left = (self.total - self.done) / rate
        done = f"{show_bytes(self.done)} of {show_bytes(self.total)}"
        note(f"{self.title}: {done}, {show_bytes(rate)}/s, {left:.0f} s left")
