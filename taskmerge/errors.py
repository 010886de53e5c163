"""Every error a user can meet: what is wrong, where, and what to do next.

TaskmergeError            exit 1   the run failed
├── OutputError                    the output folder or disk refuses
└── InputError                     what the user named is wrong
    ├── CheckpointError            a checkpoint cannot be read, or is not what it says it is
    ├── MergeError                 inputs are readable but do not fit together
    │   └── UnknownTensorError     a model has no tensor of that name
    └── UsageError        exit 2   the command or its arguments are wrong
        └── RecipeError            the recipe is wrong

Only an `InputError` may be reported as the problem of a line of the recipe, or be taken for an answer (no such model,
other names). A disk that fails is neither: catch `InputError` there, and let an `OutputError` pass.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taskmerge.printable import printable, printable_line

MOST_LINES = 19
"""Of an error's text; the command line adds one."""
MOST_CHARACTERS = 3900
MOST_NAMES = 10
"""Names that a message lists; more of them are counted."""
_LONGEST_SENTENCE, _LONGEST_PLACE, _LONGEST_NAME = 1500, 300, 160
_MANY = 300
_WORD = re.compile(r"[a-z0-9]+")


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
        what = printable(clipped(self.what, _LONGEST_SENTENCE))
        place = printable_line(clipped(self.place or "", _LONGEST_PLACE))
        text = f"{place}: {what}" if place else what
        return f"{text}\n    {printable(clipped(self.next_move, _LONGEST_SENTENCE))}" if self.next_move else text


class TaskmergeError(Exception):
    """Base of all errors meant for the user; carries one or more `Problem`s.

    `problems` are all of them; the error's text, which is what the command line prints, stays within `MOST_LINES` lines
    and `MOST_CHARACTERS` characters.
    """

    exit_code = 1

    def __init__(
        self, problems: str | Sequence[Problem], place: str | None = None, next_move: str | None = None
    ) -> None:
        if isinstance(problems, str):
            problems = [Problem(problems, place, next_move)]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__(_bounded(self.problems))


class OutputError(TaskmergeError):
    """The output cannot be written: folder in use, no space, wrong rights."""


class InputError(TaskmergeError):
    """An error in the user's input: a model, the combination of models, a recipe, an argument."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or is not what it says it is."""


class MergeError(InputError):
    """The inputs are readable but do not fit together: shapes, names, values."""


class UnknownTensorError(MergeError, KeyError):
    """A model or task vector has no tensor of that name; a `KeyError` too, as of every mapping."""

    __str__ = Exception.__str__


class UsageError(InputError):
    """The command line or a call's arguments are wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong; holds every problem found in it."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error; its advice is for that library's users."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, or None."""
    close = _close(name, _likely(name, list(known)), 1, 0.5)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], lists: str = "") -> str:
    """Return a next move for an unknown name: the nearest known one, or the known names (the nearest ten of many).

    lists: what lists them all, where there may be more: "`taskmerge inspect MODEL --tensors` lists them".
    """
    name, names = str(name), sorted(known)
    likely = _likely(name, names)
    close = _close(name, likely, 1, 0.5)
    if close:
        return f"did you mean {clipped(close[0], _LONGEST_NAME)!r}?"
    if len(names) > MOST_NAMES:
        names = list(dict.fromkeys([*_close(name, likely, MOST_NAMES, 0.0), *names]))
    return f"known: {few(names, lists=lists)}"


def few(names: Iterable[object], most: int = MOST_NAMES, lists: str = "") -> str:
    """List names in a message: the first `most`, then the number of the others (and `lists`, where they are listed)."""
    every = [str(name) for name in names]
    text = ", ".join(clipped(name, _LONGEST_NAME) for name in every[:most]) or "none"
    if len(every) > most:
        text += f" and {len(every) - most:,} more" + (f"; {lists}" if lists else "")
    return text


def clipped(text: str, most: int) -> str:
    """Return a text of at most `most` characters; an ellipsis replaces the middle of a longer one."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 3]} … {text[len(text) - tail :]}"


def _likely(name: str, known: Sequence[str]) -> Sequence[str]:
    """Of very many names those that share the most words with `name`: only they are looked at closely."""
    if len(known) <= _MANY:
        return known
    wanted = set(_WORD.findall(name[:_LONGEST_NAME].lower()))
    return heapq.nlargest(_MANY, known, key=lambda one: len(wanted & set(_WORD.findall(one.lower()))))


def _close(name: str, known: Sequence[str], count: int, cutoff: float) -> list[str]:
    """Known names like `name`, best first."""
    known = [one for one in known if len(one) <= 4 * _LONGEST_NAME]
    return difflib.get_close_matches(name[:_LONGEST_NAME], known, count, cutoff)


def _bounded(problems: Sequence[Problem]) -> str:
    """The problems as text, as many as fit; the last line says how many do not."""
    if len(problems) == 1:  # its next move must be seen, whatever its length
        lines = str(problems[0]).splitlines()
        move = lines[-1:] if problems[0].next_move and len(lines) > MOST_LINES else []
        return clipped("\n".join([*lines[: MOST_LINES - len(move)], *move]), MOST_CHARACTERS)
    shown: list[str] = []
    for number, problem in enumerate(problems):
        text = str(problem)
        last = number == len(problems) - 1
        count = sum(own.count("\n") + 1 for own in (*shown, text))
        characters = sum(len(own) + 1 for own in (*shown, text))
        if count > MOST_LINES - (not last) or characters > MOST_CHARACTERS - 40 * (not last):
            shown.append(f"and {len(problems) - number:,} more problems; fix these first")
            break
        shown.append(text)
    return "\n".join(shown)
