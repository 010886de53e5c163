"""Name globs: which tensors a rule speaks of. A match covers the whole name; case counts.

| pattern  | matches                                                              |
|----------|----------------------------------------------------------------------|
| `*`      | any run of characters, dots included                                 |
| `?`      | any one character                                                    |
| `[abc]`  | one of these; ranges `[a-f]`, `[!abc]` none of these                 |
| `{a,b}`  | one of these alternatives, which may hold patterns themselves        |
| `{0..7}` | one of the whole numbers 0 to 7, both included                       |

>>> Pattern.parse("layers.{0..2}.*.weight").matches("layers.1.mlp.weight")
True
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from taskmerge.errors import UsageError
from taskmerge.words.numerals import is_whole

MOST_NUMBERS = 10_000
LONGEST = 2_000
DEEPEST = 20
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)\Z")


class PatternError(UsageError):
    """A pattern cannot be read; says where in it."""


@dataclass(frozen=True)
class Pattern:
    """A glob, ready to match. text: as the user wrote it."""

    text: str
    steps: Sequence
    plain: re.Pattern[str] | None = None
    """The same as a regular expression, where that is as safe: of few stars."""

    @staticmethod
    def parse(text: str) -> Pattern:
        """Read a glob. Raises PatternError, with the position, when it cannot be read."""
        return _parse(text)

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches the complete name."""
        if self.plain is not None and len(name) <= _SHORT:
            return self.plain.fullmatch(name) is not None
        return bool(self.steps.after(_Name.of(name), 1) >> len(name))

    def filter(self, names: Iterable[str]) -> list[str]:
        """Return the names that the pattern matches."""
        return [name for name in names if self.matches(name)]


def matches(name: str, pattern: str) -> bool:
    """Return whether the glob matches the complete name. Raises PatternError if the glob cannot be read."""
    return _parse(pattern).matches(name)


@dataclass(frozen=True)
class _Name:
    """A name with, for each of its characters, the set of positions where it occurs (bit i: position i)."""

    text: str
    places: dict[str, int]

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(text: str) -> _Name:
        places: dict[str, int] = {}
        for index, character in enumerate(text):
            places[character] = places.get(character, 0) | 1 << index
        return _Name(text, places)

    @property
    def everywhere(self) -> int:
        return (2 << len(self.text)) - 1


class Step:
    """One piece of a glob: from the set of positions reached so far to the set reachable after it (sets as bits).

    So the work grows with name times pattern, and no pattern is slow, however many stars it has.
    """

    def after(self, name: _Name, reached: int) -> int:
        """Return the places, as bits, that a match can reach from the places `reached`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sequence(Step):
    """Steps one after the other."""

    steps: tuple[Step, ...]

    def after(self, name: _Name, reached: int) -> int:
        """Return the places, as bits, that a match can reach from the places `reached`."""
        for step in self.steps:
            if not reached:
                break
            reached = step.after(name, reached)
        return reached


@dataclass(frozen=True)
class Character(Step):
    """One given character."""

    character: str

    def after(self, name: _Name, reached: int) -> int:
        """Return the places, as bits, that a match can reach from the places `reached`."""
        return (reached & name.places.get(self.character, 0)) << 1


@dataclass(frozen=True)
class AnyOne(Step):
    """Any one character, or any that passes `accepts`."""

    accepts: Callable[[str], bool] | None = None

    def after(self, name: _Name, reached: int) -> int:
        """Return the places, as bits, that a match can reach from the places `reached`."""
        places = name.everywhere >> 1
        if self.accepts:
            places = sum(where for character, where in name.places.items() if self.accepts(character))
        return (reached & places) << 1


@dataclass(frozen=True)
class AnyRun(Step):
    """Any number of characters."""

    def after(self, name: _Name, reached: int) -> int:
        """Return the places, as bits, that a match can reach from the places `reached`."""
        return name.everywhere & -(reached & -reached)


@dataclass(frozen=True)
class Alternatives(Step):
    """One of several steps."""

    choices: tuple[Step, ...]

    def after(self, name: _Name, reached: int) -> int:
        """Return the places, as bits, that a match can reach from the places `reached`."""
        result = 0
        for choice in self.choices:
            result |= choice.after(name, reached)
        return result


@dataclass(frozen=True)
class Numbers(Step):
    """A whole number from low to high, written without leading zeros."""

    low: int
    high: int

    def after(self, name: _Name, reached: int) -> int:
        """Return the places, as bits, that a match can reach from the places `reached`."""
        result = 0
        for start in range(len(name.text)):
            if not reached >> start & 1:
                continue
            for stop in range(start + 1, min(len(name.text), start + len(str(self.high))) + 1):
                digits = name.text[start:stop]
                if not is_whole(digits) or (digits[0] == "0" and len(digits) > 1):
                    break
                if self.low <= int(digits) <= self.high:
                    result |= 1 << stop
        return result


@lru_cache(maxsize=1024)
def _parse(text: str) -> Pattern:
    if not text:
        raise PatternError("a pattern is empty", next_move='write "*" for every name')
    if len(text) > LONGEST:
        raise PatternError(
            f"a pattern has {len(text)} characters, more than {LONGEST}",
            next_move="use shorter patterns: several are allowed",
        )
    steps = _Reader(text).run(depth=0)
    return Pattern(text, steps, _as_regular(steps))


_SHORT, _FEW_STARS, _FEW_NUMBERS = 256, 3, 1000


def _as_regular(steps: Sequence) -> re.Pattern[str] | None:
    """A glob of characters, at most three stars and small ranges of numbers as a regular expression; else None.

    It is tried ten times as fast as the steps, which very many names need; three stars in a short name are at most some
    thousand tries in the worst case.
    """
    stars, text = 0, ""
    for step in steps.steps:
        if isinstance(step, Character):
            text += re.escape(step.character)
        elif isinstance(step, AnyRun):
            stars += 1
            text += ".*"
        elif isinstance(step, Numbers) and step.high - step.low < _FEW_NUMBERS:
            text += f"(?:{'|'.join(map(str, range(step.low, step.high + 1)))})"
        else:
            return None
    return re.compile(text, re.DOTALL) if stars <= _FEW_STARS else None


class _Reader:
    """Turns a glob into steps, one character at a time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, what: str, position: int) -> PatternError:
        pointer = f"{self.text}\n    {' ' * position}^"
        what = f"bad pattern {self.text!r}: {what} at character {position + 1}\n    {pointer}"
        return PatternError(
            what, next_move="correct the pattern; in square brackets a character stands for itself: [{]"
        )

    def run(self, depth: int) -> Sequence:
        """Everything up to the end, or, inside braces (depth > 0), up to the next comma or closing brace."""
        steps: list[Step] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if depth and character in ",}":
                break
            if character == "[":
                steps.append(self.one_of())
            elif character == "{":
                steps.append(self.alternatives(depth + 1))
            elif character in "]}":
                raise self.fail(f"{character!r} has no opening bracket", self.at)
            else:
                plain: dict[str, Step] = {"*": AnyRun(), "?": AnyOne()}
                steps.append(plain.get(character) or Character(character))
                self.at += 1
        return Sequence(tuple(steps))

    def one_of(self) -> Step:
        start = self.at
        negated = self.text.startswith("[!", start)
        first = start + 1 + negated
        end = self.text.find("]", first + 1)
        if end < 0:
            raise self.fail("'[' is never closed", start)
        body, spans = self.text[first:end], []
        self.at = end + 1
        while body:
            low, high = body[0], body[0]
            if len(body) > 2 and body[1] == "-":
                high = body[2]
            if low > high:
                raise self.fail(f"the range {low}-{high} is reversed", start)
            spans.append((low, high))
            body = body[3:] if len(body) > 2 and body[1] == "-" else body[1:]
        return AnyOne(lambda character: any(low <= character <= high for low, high in spans) != negated)

    def alternatives(self, depth: int) -> Step:
        start = self.at
        if depth > DEEPEST:
            raise self.fail("braces are nested too deeply", start)
        end = self.text.find("}", start)
        span = _RANGE.match(self.text[start + 1 : end]) if end >= 0 else None
        if span:
            self.at = end + 1
            return self.numbers(int(span[1]), int(span[2]), start)
        self.at += 1
        choices = [self.run(depth)]
        while self.at < len(self.text) and self.text[self.at] == ",":
            self.at += 1
            choices.append(self.run(depth))
        if self.at >= len(self.text):
            raise self.fail("'{' is never closed", start)
        self.at += 1
        if len(choices) == 1 and not choices[0].steps:
            raise self.fail("'{}' has no alternatives", start)
        return Alternatives(tuple(choices))

    def numbers(self, low: int, high: int, start: int) -> Numbers:
        if low > high:
            raise self.fail(f"the range {low}..{high} is reversed", start)
        if high - low >= MOST_NUMBERS:
            raise self.fail(f"the range {low}..{high} contains more than {MOST_NUMBERS} numbers", start)
        return Numbers(low, high)
