"""Many globs at once: which of them cover a name, found in one pass over it, however many they are.

A glob without alternatives is a row of places, each of one character or any run of them. The places of all globs are
bits of one whole number, and a character moves all of them at once (Shift-And). What a character makes of a set of
places is remembered, so that names alike, as those of experts are, cost one look-up a character.

Source: Baeza-Yates and Gonnet, "A new approach to text searching", https://doi.org/10.1145/135239.135243
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from taskmerge.words.patterns import Alternatives, AnyOne, AnyRun, Character, Numbers, Pattern, Sequence, Step

_FEW = 8
"""Of so few globs each is tried by itself: the regular expressions of Python are faster then."""
_MOST_ROWS = 64
"""Rows without alternatives that one glob may be written out as."""
_MOST_HELD = 32 << 20
"""Bytes of remembered sets of places."""
_DIGITS = "0123456789"
_Place = str | AnyOne | AnyRun
"""The characters that are allowed here, a test for them, or any run."""


class _Reached:
    """The states of all globs after some characters. after: the states after one more."""

    __slots__ = ("after", "covering", "places")

    def __init__(self, places: int) -> None:
        self.places = places
        self.after: dict[str, _Reached] = {}
        self.covering: frozenset[str] | None = None


class PatternSet:
    """Globs, ready to be tried together. Raises PatternError for one that cannot be read."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._texts = set(patterns)
        parsed = [Pattern.parse(text) for text in sorted(self._texts)]
        many = len(parsed) > _FEW
        rows = {one.text: _rows(one.steps) if many else None for one in parsed}
        self._alone = [one for one in parsed if rows[one.text] is None]
        self._begin = self._stay = self._length = 0
        self._of: dict[str, int] = {}
        self._choosing: list[tuple[int, Callable[[str], bool] | None]] = []
        self._ends: dict[int, str] = {}
        for text, written in rows.items():
            for row in written or ():
                self._add(text, row)
        self._moving: dict[str, int] = {}
        self._forget()

    def among(self, words: Iterable[str]) -> set[str]:
        """Return the globs that are equal to one of these words."""
        return self._texts.intersection(words)

    def covering(self, name: str) -> frozenset[str]:
        """Return the globs that match the complete name."""
        alone = [one.text for one in self._alone if one.matches(name)]
        if not self._length:
            return frozenset(alone)
        at = self._first
        for character in name:
            after = at.after.get(character)
            at = after if after is not None else self._move(at, character)
        if at.covering is None:
            at.covering = frozenset(text for end, text in self._ends.items() if at.places >> end & 1)
        return at.covering.union(alone) if alone else at.covering

    def _add(self, text: str, row: list[_Place]) -> None:
        self._begin |= 1 << self._length
        for number, place in enumerate(row, self._length):
            if isinstance(place, AnyRun):
                self._stay |= 1 << number
            elif isinstance(place, AnyOne):
                self._choosing.append((1 << number, place.accepts))
            else:
                for character in place:
                    self._of[character] = self._of.get(character, 0) | 1 << number
        self._length += len(row)
        self._ends[self._length] = text
        self._length += 1

    def _forget(self) -> None:
        self._known: dict[int, _Reached] = {}
        self._held = 0
        self._first = self._reached(self._begin)

    def _reached(self, places: int) -> _Reached:
        places |= (places & self._stay) << 1  # a run may be of no character
        if places not in self._known:
            self._known[places] = _Reached(places)
            self._held += self._length // 8 + 400
        return self._known[places]

    def _move(self, at: _Reached, character: str) -> _Reached:
        if character not in self._moving:
            own = self._of.get(character, 0)
            for place, accepts in self._choosing:
                own |= place if accepts is None or accepts(character) else 0
            self._moving[character] = own
        if self._held > _MOST_HELD:
            self._forget()
        after = self._reached((at.places & self._moving[character]) << 1 | at.places & self._stay)
        at.after[character] = after
        return after


def _rows(steps: Sequence) -> list[list[_Place]] | None:
    """A glob as rows without alternatives, one of which covers what it covers; None where they would be too many."""
    rows = _written_out(steps)
    return None if rows is None else [list(_once(row)) for row in rows]


def _once(row: list[_Place]) -> Iterator[_Place]:
    """The places of a row; of runs side by side the first."""
    for number, place in enumerate(row):
        if not (isinstance(place, AnyRun) and number and isinstance(row[number - 1], AnyRun)):
            yield place


def _written_out(step: Step) -> list[list[_Place]] | None:
    if isinstance(step, Sequence):
        rows: list[list[_Place]] = [[]]
        for one in step.steps:
            own = _written_out(one)
            if own is None or len(rows) * len(own) > _MOST_ROWS:
                return None
            rows = [[*before, *after] for before in rows for after in own]
        return rows
    if isinstance(step, Alternatives):
        choices = [_written_out(choice) for choice in step.choices]
        found = [row for rows in choices if rows is not None for row in rows]
        return None if None in choices or len(found) > _MOST_ROWS else found
    if isinstance(step, Numbers):
        return _numbers(step.low, step.high)
    if isinstance(step, Character):
        return [[step.character]]
    assert isinstance(step, AnyOne | AnyRun)
    return [[step]]


def _numbers(low: int, high: int) -> list[list[_Place]]:
    """Rows of digits that cover the whole numbers from low to high."""
    found: list[list[_Place]] = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        found += _same_length(str(first), str(last))
    return found


def _same_length(low: str, high: str) -> list[list[_Place]]:
    if not low:
        return [[]]
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [[_DIGITS[first : last + 1], *[_DIGITS] * rest]]
    if first == last:
        return [[low[0], *row] for row in _same_length(low[1:], high[1:])]
    found: list[list[_Place]] = [[low[0], *row] for row in _same_length(low[1:], "9" * rest)]
    if last - first > 1:
        found.append([_DIGITS[first + 1 : last], *[_DIGITS] * rest])
    return [*found, *([high[0], *row] for row in _same_length("0" * rest, high[1:]))]
