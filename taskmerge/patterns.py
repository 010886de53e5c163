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
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from taskmerge.errors import UsageError

MOST_ALTERNATIVES = 10_000
LONGEST = 2_000
DEEPEST = 20
_RANGE = re.compile(r"(\d+)\.\.(\d+)\Z")


class PatternError(UsageError):
    """A pattern cannot be read; says where in it."""


@dataclass(frozen=True)
class Pattern:
    """A glob, ready to match. text: as the user wrote it."""

    text: str
    regex: re.Pattern[str]

    @staticmethod
    def parse(text: str) -> Pattern:
        """Read a glob. Raises PatternError, with the position, when it cannot be read."""
        return _parse(text)

    def matches(self, name: str) -> bool:
        """Whether the pattern covers the whole name."""
        return self.regex.fullmatch(name) is not None

    def filter(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.matches(name)]


@lru_cache(maxsize=1024)
def _parse(text: str) -> Pattern:
    if not text:
        raise PatternError("a pattern is empty", next_move='write "*" for every name')
    if len(text) > LONGEST:
        raise PatternError(f"a pattern has {len(text)} characters, more than {LONGEST}")
    return Pattern(text, re.compile(_Reader(text).whole(), re.DOTALL))


class _Reader:
    """Turns a glob into a regular expression, one character at a time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, what: str, position: int) -> PatternError:
        pointer = f"{self.text}\n    {' ' * position}^"
        return PatternError(f"bad pattern {self.text!r}: {what} at character {position + 1}\n    {pointer}")

    def whole(self) -> str:
        return self.run(depth=0, inside=False)

    def run(self, depth: int, inside: bool) -> str:
        """Everything up to the end, or, inside braces, up to the next comma or closing brace."""
        pieces: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if inside and character in ",}":
                break
            if character == "*":
                if not pieces or pieces[-1] != ".*":
                    pieces.append(".*")
                self.at += 1
            elif character == "?":
                pieces.append(".")
                self.at += 1
            elif character == "[":
                pieces.append(self.one_of())
            elif character == "{":
                pieces.append(self.alternatives(depth + 1))
            elif character in "]}":
                raise self.fail(f"{character!r} closes nothing", self.at)
            else:
                pieces.append(re.escape(character))
                self.at += 1
        return "".join(pieces)

    def one_of(self) -> str:
        start = self.at
        end = self.text.find("]", start + 2)
        if end < 0:
            raise self.fail("'[' is never closed", start)
        body = self.text[start + 1 : end]
        self.at = end + 1
        negated = body.startswith("!")
        body = body[1:] if negated else body
        if not body:
            raise self.fail("'[!]' names no character", start)
        for low, high in re.findall(r"(.)-(.)", body):
            if low > high:
                raise self.fail(f"the range {low}-{high} runs backwards", start)
        ranges = re.sub(r"([\\\]\[^&~|])", r"\\\1", body)
        return f"[{'^' if negated else ''}{ranges}]"

    def alternatives(self, depth: int) -> str:
        start = self.at
        if depth > DEEPEST:
            raise self.fail("braces are nested too deep", start)
        end = self.text.find("}", start)
        span = _RANGE.match(self.text[start + 1 : end]) if end >= 0 else None
        if span:
            self.at = end + 1
            return self.numbers(int(span[1]), int(span[2]), start)
        self.at += 1
        choices = [self.run(depth, inside=True)]
        while self.at < len(self.text) and self.text[self.at] == ",":
            self.at += 1
            choices.append(self.run(depth, inside=True))
        if self.at >= len(self.text):
            raise self.fail("'{' is never closed", start)
        self.at += 1
        if choices == [""]:
            raise self.fail("'{}' names no alternative", start)
        return f"(?:{'|'.join(choices)})"

    def numbers(self, low: int, high: int, start: int) -> str:
        if low > high:
            raise self.fail(f"the range {low}..{high} runs backwards", start)
        if high - low >= MOST_ALTERNATIVES:
            raise self.fail(f"the range {low}..{high} holds more than {MOST_ALTERNATIVES} numbers", start)
        return f"(?:{'|'.join(str(number) for number in range(low, high + 1))})"


def split_component(text: str, components: Iterable[str]) -> tuple[str | None, str]:
    """A rule's match text as (component, pattern): "backbone.layers.*" is ("backbone", "layers.*") where
    `backbone` is a component, else (None, the whole text). A component alone means all of it: ("backbone", "*")."""
    first, dot, rest = text.partition(".")
    if first not in set(components):
        return None, text
    return first, rest if dot else "*"


def matches(name: str, pattern: str) -> bool:
    """Whether the glob covers the whole name. Raises PatternError when the glob cannot be read."""
    return _parse(pattern).matches(name)
