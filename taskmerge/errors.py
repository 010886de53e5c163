"""Every error a user can meet: what is wrong, where, and what to do next.

TaskmergeError            exit 1   the run failed
├── CheckpointError                a checkpoint cannot be read, or is not what it says it is
├── OutputError                    the output folder or disk refuses
├── MergeError                     inputs are readable but do not fit together
└── UsageError            exit 2   the command or its arguments are wrong
    └── RecipeError                the recipe is wrong
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the user's own words.

    what: the sentence, quoting the user's text.  place: ``file:line``, a tensor name or a path.
    next_move: what the user can do about it.
    """

    what: str
    place: str | None = None
    next_move: str | None = None

    def __str__(self) -> str:
        text = f"{self.place}: {self.what}" if self.place else self.what
        return f"{text}\n    {self.next_move}" if self.next_move else text


class TaskmergeError(Exception):
    """Base of all errors meant for the user; carries one or more `Problem`s."""

    exit_code = 1

    def __init__(
        self, problems: str | Sequence[Problem], place: str | None = None, next_move: str | None = None
    ) -> None:
        if isinstance(problems, str):
            problems = [Problem(problems, place, next_move)]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CheckpointError(TaskmergeError):
    """A checkpoint cannot be read, or is not what it says it is."""


class OutputError(TaskmergeError):
    """The output cannot be written: folder in use, no space, wrong rights."""


class MergeError(TaskmergeError):
    """The inputs are readable but do not fit together: shapes, names, values."""


class UsageError(TaskmergeError):
    """The command line or a call's arguments are wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong; holds every problem found in it."""


def first_line(error: BaseException) -> str:
    """What another library's error says first; its advice is for its own users."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing comes close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A next move for an unknown name: the nearest known one, or the list of all."""
    names = sorted(known)
    close = nearest(name, names)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(names) or 'none'}"
