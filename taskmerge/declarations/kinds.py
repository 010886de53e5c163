"""Kinds of one declared value: numbers with bounds, flags, choices, text, names. Strict, and in plain words."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskmerge.errors import Problem, clipped, did_you_mean, few, nearest
from taskmerge.words import sizes
from taskmerge.words.patterns import Pattern, PatternError

Keys = tuple[str | int, ...]


class _Bad:
    """Replaces an invalid value; its problem has been noted."""

    def __repr__(self) -> str:
        return "BAD"


BAD = _Bad()


@dataclass(frozen=True)
class At:
    """The place of a value: its path of keys and positions, and a function that describes that place ("merge.yaml:12").

    folder: the folder that relative file names in the document are relative to.  root: the whole document, unread.
    keys: number of keys of the path that `name` shows.
    """

    lookup: Callable[[Keys], str]
    path: Keys = ()
    folder: Path = Path()
    root: Any = None
    keys: int = 1

    @property
    def place(self) -> str:
        """The place in words, e.g. "merge.yaml:12"."""
        return self.lookup(self.path)

    @property
    def name(self) -> str:
        """The name of the value in messages.

        It is the last key, with the one before it if that is a name of the user's choice; positions in a list follow in
        brackets.
        """
        keys = [index for index, step in enumerate(self.path) if isinstance(step, str)][-self.keys :]
        return At(self.lookup, self.path[keys[0] :]).dotted if keys else "the recipe"

    @property
    def dotted(self) -> str:
        """The complete path with dots, and positions in brackets."""
        text = ""
        for step in self.path:
            text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
        return text or "the recipe"

    def child(self, step: str | int, named: bool = False) -> At:
        """Return the place of an inner value.

        named: the step is a name of the user's choice, which is unclear without the key before it.
        """
        keys = self.keys + named if named or isinstance(step, int) else 1
        return At(self.lookup, (*self.path, step), self.folder, self.root, keys)

    @staticmethod
    def fixed(place: str, name: str) -> At:
        """Return the place of a value outside any document (a command-line option, a call's argument)."""
        return At(lambda _path: place, (name,))


def shown(value: Any) -> str:
    """Return a value as the user wrote it: text in quotes, YAML's words for true, false and nothing."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {clipped(repr(value), 300)}"
    if isinstance(value, Mapping):
        return "a mapping" + (f" with {few(map(repr, value), 3)}" if value else " (empty)")
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    return clipped(str(value), 300)


class Kind(ABC):
    """One kind of value."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked. Decides between alternatives."""

    @abstractmethod
    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in its final form; for an invalid one, add to `problems` and return BAD."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema (draft 7) of the values that `read` accepts."""

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        return None

    def refuse(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Add a problem about the value to `problems`, and return BAD."""
        what = f"{at.name} must be {self.words}, not {shown(value)}"
        problems.append(Problem(what, at.place, self.hint(value)))
        return BAD


@dataclass(frozen=True)
class Number(Kind):
    """A finite number inside bounds. integer: whole numbers only (1.0 is not one). An int serves as a float."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    integer: bool = False

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        noun = "a whole number" if self.integer else "a number"
        if self.low is not None and self.high is not None:
            if not (self.low_open or self.high_open):
                return f"{noun} from {self.low:g} to {self.high:g}"
            low = f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
            high = f"below {self.high:g}" if self.high_open else f"at most {self.high:g}"
            return f"{noun} {low} and {high}"
        if self.low is not None:
            return f"{noun} {'above' if self.low_open else 'of at least'} {self.low:g}"
        if self.high is not None:
            return f"{noun} {'below' if self.high_open else 'of at most'} {self.high:g}"
        return noun

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, int if self.integer else (int, float)) and not isinstance(value, bool)

    def inside(self, value: float) -> bool:
        """Return whether a number is finite and within the bounds."""
        below = self.low is not None and (value <= self.low if self.low_open else value < self.low)
        above = self.high is not None and (value >= self.high if self.high_open else value > self.high)
        return math.isfinite(value) and not below and not above

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not self.accepts(value):
            return self.refuse(value, at, problems)
        try:
            number = float(value)
        except OverflowError:
            return self.refuse(value, at, problems)
        number = value if self.integer else number
        return number if self.inside(number) else self.refuse(value, at, problems)

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        if isinstance(value, bool):
            return f"write {int(value)} if you mean the number"
        if isinstance(value, str):
            try:
                float(value)
            except ValueError:
                return None
            return f"write {value} without quotes"
        return None

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        schema: dict[str, Any] = {"type": "integer" if self.integer else "number"}
        if self.low is not None:
            schema["exclusiveMinimum" if self.low_open else "minimum"] = self.low
        if self.high is not None:
            schema["exclusiveMaximum" if self.high_open else "maximum"] = self.high
        return schema


@dataclass(frozen=True)
class Flag(Kind):
    """A switch: true or false, nothing else."""

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return "true or false"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, bool)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        return value if isinstance(value, bool) else self.refuse(value, at, problems)

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        word = str(value).lower()
        if word in ("1", "yes", "on", "true"):
            return "write true"
        return "write false" if word in ("0", "no", "off", "false") else None

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Kind):
    """Text that is not empty and has no control characters."""

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return "text"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, str)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not isinstance(value, str):
            return self.refuse(value, at, problems)
        if not value.strip() or re.search(r"[\x00-\x1f]", value):
            problems.append(
                Problem(
                    f"{at.name} must be text, not {value!r}",
                    at.place,
                    "write text, without line breaks and control characters",
                )
            )
            return BAD
        return value

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        return f'put it in quotes: "{value}"' if isinstance(value, (int, float)) else None

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class FreeText(Text):
    """Text that is used unchanged: it may be empty, and have line breaks and tabs."""

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not isinstance(value, str):
            return self.refuse(value, at, problems)
        if re.search(r"[\x00-\x08\x0b-\x1f]", value):
            problems.append(
                Problem(f"{at.name} must be text, not {value!r}", at.place, "remove the control characters")
            )
            return BAD
        return value

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "string"}


@dataclass(frozen=True)
class OneOf(Kind):
    """One of a few words or numbers."""

    choices: tuple[str | int, ...]

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        names = [str(choice) for choice in self.choices]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return any(type(value) is type(choice) for choice in self.choices)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        for choice in self.choices:
            if type(value) is type(choice) and value == choice:
                return value
        return self.refuse(value, at, problems)

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        close = nearest(value, [str(choice) for choice in self.choices]) if isinstance(value, str) else None
        return f"did you mean {close!r}?" if close else None

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"enum": list(self.choices)}


@dataclass(frozen=True)
class Size(Kind):
    """A number of bytes: 5GB, 500MB, 2GiB, or a whole number. What it may be is said in `taskmerge.words.sizes`."""

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return sizes.WORDS

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        return sizes.parse_size(value) if sizes.is_size(value) else self.refuse(value, at, problems)

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        return sizes.NEXT_MOVE

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"anyOf": [{"type": "number", "minimum": 1}, {"type": "string", "pattern": sizes.PATTERN}]}


@dataclass(frozen=True)
class EntryOf(Text):
    """The name of an entry of the document's mapping `section`, or one of the words in `also`."""

    section: str
    also: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return ", ".join(["the name of one of the " + self.section, *map(repr, self.also)]).replace(", '", " or '", 1)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        name = super().read(value, at, problems)
        entries = at.root.get(self.section) if isinstance(at.root, Mapping) else None
        if name is BAD or not isinstance(entries, Mapping) or name in entries or name in self.also:
            return name
        known = [str(entry) for entry in entries] + list(self.also)
        what = f"{at.dotted}: {name!r} is not one of the {self.section}"
        problems.append(Problem(what, at.place, did_you_mean(name, known)))
        return BAD


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class NewName(Text):
    """A name of the user's choice, none of `taken`."""

    taken: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return "a name of letters, digits, `_`, `-` and `.`"

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if isinstance(value, str) and _NAME.match(value) and value not in self.taken:
            return value
        reserved = f"; {' and '.join(map(repr, self.taken))} have another meaning here" if self.taken else ""
        problems.append(Problem(f"{shown(value)} cannot be a name", at.place, f"choose {self.words}{reserved}"))
        return BAD


@dataclass(frozen=True)
class Glob(Text):
    """A name pattern, as in `taskmerge.words.patterns`."""

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return "a name pattern"

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        text = super().read(value, at, problems)
        if text is not BAD:
            try:
                Pattern.parse(text)
            except PatternError as error:
                problems.extend(replace(problem, place=at.place) for problem in error.problems)
                return BAD
        return text
