"""Messages of long work: its progress and its assumptions. Listeners are optional."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

_LOG = logging.getLogger("taskmerge")


@dataclass(frozen=True)
class Progress:
    """Work under way.

    title: what is done.  done, total: in `unit`; total None where it is not known.  seconds: since it began.
    rate: units per second since it began here, 0 before the first.  facts: what else can be said: loss, score, …
    over: whether this is the last that is told of it.
    """

    title: str
    done: int
    total: int | None
    unit: str
    seconds: float
    rate: float = 0.0
    facts: Mapping[str, float] = field(default_factory=dict)
    over: bool = False

    @property
    def left(self) -> float | None:
        """The seconds until it is done, at the rate so far; None if unknown."""
        if self.total is None or not self.rate:
            return None
        return max(self.total - self.done, 0) / self.rate


@dataclass(frozen=True)
class Said:
    """A line about what is assumed, left out or approximated."""

    text: str


Watcher = Callable[[Progress | Said], object]
_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of all work inside the block: a `Progress` at every advance, a `Said` for every line."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell(text: str) -> None:
    """Say a line to all who watch, and to the log of this package."""
    _LOG.info(text)
    for watcher in _watchers:
        watcher(Said(text))


class Work:
    """One piece of work; `advance` reports its progress."""

    def __init__(self, title: str, total: int | None, unit: str, done: int = 0) -> None:
        """done: what an earlier run had done already; it does not count for the rate."""
        self.title, self.total, self.unit = title, total, unit
        self.done = self.start = done
        self.facts: dict[str, float] = {}
        self.began = time.monotonic()

    def advance(self, count: int = 1, **facts: float) -> None:
        """So much more is done. facts: what is known now; those that are not given stay."""
        self.done += count
        self.facts |= facts
        self._tell(False)

    def _tell(self, over: bool) -> None:
        seconds = time.monotonic() - self.began
        rate = (self.done - self.start) / seconds if seconds > 0 else 0.0
        told = Progress(self.title, self.done, self.total, self.unit, seconds, rate, dict(self.facts), over)
        for watcher in _watchers:
            watcher(told)


@contextmanager
def work(title: str, total: int | None, unit: str = "items", done: int = 0) -> Iterator[Work]:
    """Report a piece of work from its beginning to its end; arguments as for `Work`."""
    found = Work(title, total, unit, done)
    try:
        yield found
    finally:
        found._tell(True)
