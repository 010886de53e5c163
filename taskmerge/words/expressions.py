"""Regular expressions from somebody's files, matched in linear time: none takes longer than its length says.

Python's own engine goes back and tries again, and a pattern of twenty characters can keep it busy for years. Here all
ways through a pattern are followed at once.

Source: Thompson, Regular Expression Search Algorithm (1968), https://doi.org/10.1145/363347.363387.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as constants  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as constants
    import sre_parse as parser

MOST_STATES = 2000
"""Of one pattern; bounded repeats are written out."""
LONGEST = 1000
_MOST_REMEMBERED = 5000
_REPEATS = (constants.MAX_REPEAT, constants.MIN_REPEAT)

Test = Callable[[str], bool]
At = Callable[[str, int], bool]


class ExpressionError(ValueError):
    """A text is no regular expression, or one that is not matched here. Its text is a sentence for the user."""


@lru_cache(maxsize=4096)
def expression(text: str) -> Expression:
    """Return the expression of a text. Raises ExpressionError."""
    return Expression(text)


class Expression:
    """A regular expression as Python writes them, without what needs going back: back references, looking around."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise ExpressionError(f"has {len(text):,} characters, more than {LONGEST:,}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = parser.parse(text)
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            raise ExpressionError(f"is no regular expression: {error}") from None
        if tree.state.flags & ~re.UNICODE:
            raise ExpressionError("sets flags, such as (?i), which are not matched here")
        self._plain = None if _goes_back(tree) else (re.compile(text), re.compile(rf"(?:.*\.)?(?:{text})"))
        self._states: list[tuple[Test | At | None, bool, list[int]]] = []
        self._known: dict[tuple[frozenset[int], str, bool], frozenset[int]] = {}
        self._placed = False
        if self._plain is None:
            self._end = self._state(None, [])
            self._start = self._built(tree, self._end, False)

    def matches(self, text: str, from_dot: bool = False) -> bool:
        """Return whether the whole of a text is of the expression. from_dot: or what stands behind one of its dots."""
        if self._plain is not None:
            return self._plain[from_dot].fullmatch(text) is not None
        states = self._reached([self._start], text, 0)
        for place, sign in enumerate(text):
            key = (states, sign, from_dot)
            found = None if self._placed else self._known.get(key)
            if found is None:
                passed = [after for one in states for after in self._passed(one, sign)]
                if from_dot and sign == ".":
                    passed.append(self._start)
                found = self._reached(passed, text, place + 1)
                if len(self._known) < _MOST_REMEMBERED:
                    self._known[key] = found
            states = found
        return self._end in states

    def _passed(self, state: int, sign: str) -> list[int]:
        test, reads, after = self._states[state]
        return after if reads and test(sign) else []  # type: ignore[call-arg, misc]

    def _reached(self, states: Iterable[int], text: str, place: int) -> frozenset[int]:
        """The states, and those that are reached from them without reading."""
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in found:
                continue
            found.add(state)
            test, reads, after = self._states[state]
            if not reads and (test is None or test(text, place)):  # type: ignore[call-arg]
                waiting.extend(after)
        return frozenset(found)

    def _state(self, test: Test | At | None, after: list[int], reads: bool = False) -> int:
        if len(self._states) >= MOST_STATES:
            raise ExpressionError("is too costly to match")
        self._states.append((test, reads, after))
        return len(self._states) - 1

    def _built(self, nodes: Any, after: int, fold: bool) -> int:
        """The state that begins a sequence of nodes which ends in `after`."""
        for kind, value in reversed(list(nodes)):
            after = self._one(kind, value, after, fold)
        return after

    def _one(self, kind: Any, value: Any, after: int, fold: bool) -> int:
        if kind is constants.BRANCH:
            return self._state(None, [self._built(one, after, fold) for one in value[1]])
        if kind is constants.SUBPATTERN:
            _, added, taken, inner = value
            if (added | taken) & ~re.IGNORECASE:
                raise ExpressionError("sets flags other than (?i), which are not matched here")
            return self._built(inner, after, (fold or bool(added)) and not taken)
        if kind in _REPEATS:
            least, most, inner = value
            return self._repeated(least, most, inner, after, fold)
        if kind is constants.AT:
            self._placed = True
            return self._state(_PLACES[value], [after])
        return self._state(_test(kind, value, fold), [after], reads=True)

    def _repeated(self, least: int, most: Any, inner: Any, after: int, fold: bool) -> int:
        start = after
        if most is constants.MAXREPEAT:
            ways = [after]
            start = self._state(None, ways)
            ways.append(self._built(inner, start, fold))
        else:
            for _ in range(min(int(most), MOST_STATES) - least):
                start = self._state(None, [self._built(inner, start, fold), after])
        for _ in range(least):
            start = self._built(inner, start, fold)
        return start


def _goes_back(nodes: Any) -> bool:
    """Whether Python's engine may have to try a pattern in several ways."""
    for kind, value in nodes:
        if kind is constants.SUBPATTERN:
            if _goes_back(value[3]):
                return True
        elif kind not in (constants.LITERAL, constants.NOT_LITERAL, constants.ANY, constants.IN, constants.AT):
            return True
    return False


def _test(kind: Any, value: Any, fold: bool) -> Test:
    """Whether a node takes a character."""
    if kind is constants.ANY:
        return lambda sign: sign != "\n"
    if kind is constants.LITERAL:
        row = [(constants.LITERAL, value)]
    elif kind is constants.NOT_LITERAL:
        row = [(constants.NEGATE, None), (constants.LITERAL, value)]
    elif kind is constants.IN:
        row = value
    else:
        raise ExpressionError(f"holds what is not matched here: {str(kind).lower().replace('_', ' ')}")
    wanted = row[0][0] is not constants.NEGATE
    rows = row if wanted else row[1:]

    def takes(sign: str) -> bool:
        signs = {sign, sign.lower(), sign.upper()} if fold else {sign}
        return any(_of(one, each) for each in signs for one in rows) is wanted

    return takes


def _of(row: tuple[Any, Any], sign: str) -> bool:
    kind, value = row
    if len(sign) != 1:  # upper case of some letters is two
        return False
    if kind is constants.LITERAL:
        return ord(sign) == value
    if kind is constants.RANGE:
        return bool(value[0] <= ord(sign) <= value[1])
    return _CATEGORIES[value](sign)


def _is_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"


def _at_boundary(text: str, place: int) -> bool:
    before, after = place > 0 and _is_word(text[place - 1]), place < len(text) and _is_word(text[place])
    return before != after


_CATEGORIES: dict[Any, Test] = {
    constants.CATEGORY_DIGIT: str.isdecimal,
    constants.CATEGORY_NOT_DIGIT: lambda sign: not sign.isdecimal(),
    constants.CATEGORY_SPACE: str.isspace,
    constants.CATEGORY_NOT_SPACE: lambda sign: not sign.isspace(),
    constants.CATEGORY_WORD: _is_word,
    constants.CATEGORY_NOT_WORD: lambda sign: not _is_word(sign),
}
_PLACES: dict[Any, At] = {
    constants.AT_BEGINNING: lambda text, place: place == 0,
    constants.AT_BEGINNING_STRING: lambda text, place: place == 0,
    constants.AT_END: lambda text, place: place == len(text) or (place == len(text) - 1 and text[place] == "\n"),
    constants.AT_END_STRING: lambda text, place: place == len(text),
    constants.AT_BOUNDARY: _at_boundary,
    constants.AT_NON_BOUNDARY: lambda text, place: not _at_boundary(text, place),
}
