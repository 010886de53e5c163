"""Regular expressions out of files of strangers, matched in linear time: no pattern is slow, and none is guessed to be.

Python's own matcher tries one way after the other, which takes years for `(.|.)*!`. This one follows all ways at once
(Thompson's construction): the work grows with the pattern times the text. Python's parser reads the pattern, so that
what it means is what Python means. What cannot be matched so (looking around, back references) is refused by name.

Source: https://swtch.com/~rsc/regexp/regexp1.html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from taskmerge.errors import UsageError, clipped

if sys.version_info >= (3, 11):
    from re import _constants as names  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as names
    import sre_parse as parser

LONGEST = 1_000
MOST_STATES = 6_000
_REMEMBERED = 10_000
_FLAGS = re.IGNORECASE | re.DOTALL | re.UNICODE | re.ASCII | re.VERBOSE

Accepts = Callable[[str], bool]


class RegularError(UsageError):
    """A pattern is not a regular expression, or not a supported one."""


@dataclass
class _State:
    """A state of a match. accepts: the character that leads to `after`; None: `after` and `other` are here too.

    holds: what must hold at this place (the beginning, the end) for that.
    """

    accepts: Accepts | None = None
    after: int = -1
    other: int = -1
    holds: str = ""


class Regular:
    """A pattern, ready to be matched with whole texts."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._states: list[_State] = []
        try:
            if len(text) > LONGEST:
                raise RegularError(f"more than {LONGEST} characters")
            tree = parser.parse(text)
            if tree.state.flags & ~_FLAGS:
                raise RegularError("flags other than i, s, x, a and u are not supported")
            self._flags = tree.state.flags
            self._end = self._add(_State())
            self._start = self._build(tree, self._end, self._flags)
        except RegularError:
            raise
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise RegularError(str(error) or type(error).__name__) from None
        self._begin = self._closure({self._start}, True, False)
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def fullmatch(self, text: str) -> bool:
        """Return whether the pattern matches the complete text."""
        reached = frozenset(self._begin)
        for place, character in enumerate(text):
            if not reached:
                return False
            reached = self._step(reached, character, place == len(text) - 1)
        if not text:
            reached = frozenset(self._closure({self._start}, True, True))
        return self._end in reached

    def _step(self, reached: frozenset[int], character: str, last: bool) -> frozenset[int]:
        key = (reached, f"{character}{last}")
        found = self._steps.get(key)
        if found is None:
            after = {state.after for state in map(self._states.__getitem__, reached) if _takes(state, character)}
            found = frozenset(self._closure(after, False, last))
            if len(self._steps) >= _REMEMBERED:
                self._steps.clear()
            self._steps[key] = found
        return found

    def _closure(self, states: set[int], first: bool, last: bool) -> set[int]:
        seen: set[int] = set()
        waiting = list(states)
        while waiting:
            number = waiting.pop()
            if number < 0 or number in seen:
                continue
            seen.add(number)
            state = self._states[number]
            if state.accepts is None and not ((state.holds == "^" and not first) or (state.holds == "$" and not last)):
                waiting += [state.after, state.other]
        return seen

    # ------------------------------------------------------------------------------------------------- from the tree

    def _add(self, state: _State) -> int:
        if len(self._states) >= MOST_STATES:
            raise RegularError("its nested repeats are too many")
        self._states.append(state)
        return len(self._states) - 1

    def _build(self, tree: Any, after: int, flags: int) -> int:
        """The state at which a piece begins that leads on to state `after`."""
        for operation, argument in reversed(list(tree)):
            after = self._piece(operation, argument, after, flags)
        return after

    def _piece(self, operation: Any, argument: Any, after: int, flags: int) -> int:
        if operation in (names.LITERAL, names.NOT_LITERAL, names.ANY, names.IN):
            return self._add(_State(_accepts(operation, argument, flags), after))
        if operation is names.BRANCH:
            start = self._build(argument[1][0], after, flags)
            for choice in argument[1][1:]:
                start = self._add(_State(None, start, self._build(choice, after, flags)))
            return start
        if operation is names.SUBPATTERN:
            _, more, less, inside = argument
            if (more | less) & ~_FLAGS:
                raise RegularError("flags other than i, s, x, a and u are not supported")
            return self._build(inside, after, (flags | more) & ~less)
        if operation in (names.MAX_REPEAT, names.MIN_REPEAT):
            least, most, inside = argument
            return self._repeat(least, most, inside, after, flags)
        if operation is names.AT and argument in _PLACES:
            return self._add(_State(None, after, holds=_PLACES[argument]))
        raise RegularError(f"{str(operation).lower().replace('_', ' ')} is not supported")

    def _repeat(self, least: int, most: int, inside: Any, after: int, flags: int) -> int:
        if most is names.MAXREPEAT:
            loop = self._add(_State(None, -1, after))
            self._states[loop].after = self._build(inside, loop, flags)
            start = loop
        else:
            start = after
            for _ in range(most - least):
                start = self._add(_State(None, self._build(inside, start, flags), after))
        for _ in range(least):
            start = self._build(inside, start, flags)
        return start


_PLACES = {names.AT_BEGINNING: "^", names.AT_BEGINNING_STRING: "^", names.AT_END: "$", names.AT_END_STRING: "$"}


def _takes(state: _State, character: str) -> bool:
    return state.accepts is not None and state.accepts(character)


def _accepts(operation: Any, argument: Any, flags: int) -> Accepts:
    """Which characters one piece takes: what Python's own matcher says of a pattern of one character."""
    if operation is names.ANY:
        return (lambda _: True) if flags & re.DOTALL else (lambda character: character != "\n")
    single = re.compile(_spelled(operation, argument), flags & (re.IGNORECASE | re.ASCII))
    return lambda character: single.fullmatch(character) is not None


_CATEGORIES = {
    names.CATEGORY_DIGIT: r"\d", names.CATEGORY_NOT_DIGIT: r"\D",
    names.CATEGORY_SPACE: r"\s", names.CATEGORY_NOT_SPACE: r"\S",
    names.CATEGORY_WORD: r"\w", names.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


def _spelled(operation: Any, argument: Any) -> str:
    """A piece that takes one character, written again."""
    if operation is names.LITERAL:
        return _escaped(argument)
    if operation is names.NOT_LITERAL:
        return f"[^{_escaped(argument)}]"
    parts = []
    for kind, value in argument:
        if kind is names.NEGATE:
            parts.append("^")
        elif kind is names.LITERAL:
            parts.append(_escaped(value))
        elif kind is names.RANGE:
            parts.append(f"{_escaped(value[0])}-{_escaped(value[1])}")
        else:
            parts.append(_CATEGORIES[value])
    return f"[{''.join(parts)}]"


def _escaped(number: int) -> str:
    return f"\\U{number:08x}"


@lru_cache(maxsize=1024)
def regular(text: str) -> Regular:
    """Parse the pattern of a text. Raises RegularError with the part that is not supported."""
    try:
        return Regular(text)
    except RegularError as error:
        said = error.problems[0].what
        raise RegularError(f"{clipped(repr(text), 200)} is not a supported regular expression: {said}") from None
