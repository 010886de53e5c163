"""What a case is: a generator's name and a number. The same seed makes the same case again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a command ended. outcome: an exit code, or the traceback of what came out of it."""

    code: int | None
    out: str
    err: str
    traceback: str = ""


Check = Callable[[Path, Ended], Iterable[str]]


@dataclass(frozen=True)
class Command:
    """One command on a case's room, run with the room as the current folder.

    words: after `taskmerge`.  writes: what it may make or change, as paths of the room, with what lies beside an output
    of that name (`.NAME.partial`, `NAME-report`).  check: looks for faults of a result that was accepted.  must: it has
    to be accepted.  runs: files of the room whose code the user named.
    """

    words: tuple[str, ...]
    writes: tuple[str, ...] = ()
    check: Check | None = None
    must: bool = False
    runs: tuple[str, ...] = ()


def command(*words: object, writes: Sequence[str] = (), **more: object) -> Command:
    return Command(tuple(map(str, words)), tuple(writes), **more)  # type: ignore[arg-type]


Make = Callable[[random.Random, Path], Sequence[Command]]


@dataclass(frozen=True)
class Generator:
    """template: the folder of `templates` that a case begins with.  share: how many cases of 100 are its own."""

    name: str
    template: str
    make: Make
    share: float
    meaning: str = field(default="")
    kept: int = 0
    """Of cases that are written down: how many there are."""


GENERATORS: dict[str, Generator] = {}


def generator(template: str, share: float = 5) -> Callable[[Make], Make]:
    """Registers a function as the generator of its name."""

    def register(make: Make) -> Make:
        GENERATORS[make.__name__] = Generator(make.__name__, template, make, share, (make.__doc__ or "").strip())
        return make

    return register


@dataclass(frozen=True)
class Case:
    generator: str
    number: int
    seed: int

    def __str__(self) -> str:
        return f"{self.generator}:{self.number}"

    def random(self) -> random.Random:
        made = random.Random(f"{self.seed}/{self.generator}/{self.number}")
        made.number = self.number  # type: ignore[attr-defined]
        return made


def choose(count: int, seed: int, only: Sequence[str] = ()) -> list[Case]:
    """About so many cases, by the generators' shares; each generator has at least one."""
    rows = [row for name, row in GENERATORS.items() if not only or name in only]
    whole = sum(row.share for row in rows)
    return [
        Case(row.name, number, seed)
        for row in rows
        for number in range(row.kept or max(1, round(count * row.share / max(whole, 1))))
    ]
