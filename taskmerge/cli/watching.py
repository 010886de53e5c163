"""Progress of long work: a bar on a terminal, one line per minute in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskmerge.cli.output import console, note
from taskmerge.words.processes import is_first
from taskmerge.words.progress import Progress, Said, watching

SHORT = 2.0
"""Seconds; what takes less is not shown."""
_INTERVAL = 60.0
_FACTS = {"loss": "loss {:.4g}", "held_out": "held out {:.3f}"}


@contextmanager
def show_work() -> Iterator[None]:
    """Show the progress of the work inside the block on stderr. If there are several processes, only the first does."""
    if not is_first():
        yield
        return
    shown = _Bars() if sys.stderr.isatty() else _Lines()
    try:
        with watching(shown):
            yield
    finally:
        shown.close()


def words(told: Progress) -> str:
    """Return the text of a line after the title."""
    of = f" of {told.total:,}" if told.total is not None else ""
    parts = [f"{told.done:,}{of} {told.unit}"]
    parts += [text.format(told.facts[name]) for name, text in _FACTS.items() if name in told.facts]
    if told.rate:
        per_second = told.rate * told.facts.get("pairs", 1.0)
        unit = "pairs" if "pairs" in told.facts else told.unit
        parts.append(f"{per_second:,.0f} {unit}/s" if per_second >= 10 else f"{per_second:.2g} {unit}/s")
    if told.over:
        parts.append(f"{duration(told.seconds)} in total")
    elif told.left is not None:
        parts.append(f"{duration(told.left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a readable duration: 42 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Lines:
    """For a log: a line when something takes long, one per minute, and one at the end."""

    def __init__(self) -> None:
        self.shown: dict[str, float] = {}

    def __call__(self, told: Progress | Said) -> None:
        if isinstance(told, Said):
            note(told.text)
            return
        last = self.shown.get(told.title)
        due = told.seconds >= SHORT if last is None else told.seconds - last >= _INTERVAL
        if told.over:
            due = told.seconds >= SHORT
            self.shown.pop(told.title, None)
        elif due:
            self.shown[told.title] = told.seconds
        if due:
            note(f"{told.title}: {words(told)}")

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class _Bars:
    """For a terminal: a bar for each long piece of work; a line remains for each finished one."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.tasks: dict[str, Any] = {}

    def __call__(self, told: Progress | Said) -> None:
        if isinstance(told, Said):
            note(told.text)
            return
        if told.seconds < SHORT:
            return
        if told.over:
            if told.title in self.tasks:
                self.bar.remove_task(self.tasks.pop(told.title))
            if not self.tasks:
                self.close()
            note(f"{told.title}: {words(told)}")
            return
        if told.title not in self.tasks:
            self.tasks[told.title] = self._open().add_task(told.title, total=told.total, words="")
        self.bar.update(self.tasks[told.title], completed=told.done, words=words(told))

    def _open(self) -> Any:
        if self.bar is None:
            from rich import progress

            columns = (
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[words]}", markup=False),
            )
            self.bar = progress.Progress(*columns, console=console(stderr=True), transient=True)
            self.bar.start()
        return self.bar

    def close(self) -> None:
        """Remove the bars from the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
