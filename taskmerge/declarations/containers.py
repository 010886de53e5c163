"""Kinds of values with several parts: lists, mappings, gradients, alternatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskmerge.declarations.kinds import BAD, At, EntryOf, Kind, Number, OneOf, Text, shown
from taskmerge.errors import Problem


@dataclass(frozen=True)
class Graded(Kind):
    """A number, or a list of numbers: a gradient over depth (first layer .. last layer, linear in between)."""

    number: Number

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return f"{self.number.words}, or a list of such numbers (a gradient over depth)"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return self.number.accepts(value) or isinstance(value, (list, tuple))

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not isinstance(value, (list, tuple)):
            return self.number.read(value, at, problems)
        if not value:
            return self.refuse(value, at, problems)
        read = [self.number.read(entry, at.child(index), problems) for index, entry in enumerate(value)]
        return BAD if BAD in read else tuple(read)

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        return self.number.hint(value)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        number = self.number.schema()
        return {"anyOf": [number, {"type": "array", "items": number, "minItems": 1}]}


@dataclass(frozen=True)
class NumberEach(Kind):
    """A number, or one per specialist: a tuple in a call, a mapping from names in a recipe (`in_recipe`)."""

    number: Number

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return f"{self.number.words}, or one such number per specialist"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return self.number.accepts(value) or isinstance(value, (list, tuple))

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not isinstance(value, (list, tuple)):
            return self.number.read(value, at, problems)
        read = [self.number.read(entry, at.child(index), problems) for index, entry in enumerate(value)]
        return BAD if BAD in read else tuple(read)

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        return self.number.hint(value)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return Graded(self.number).schema()

    def in_recipe(self) -> Kind:
        """Return the kind of this value in a recipe, where each specialist has a name."""
        return Either((Graded(self.number), Mapped(Graded(self.number), EntryOf("specialists"))))


@dataclass(frozen=True)
class Listed(Kind):
    """A list; one entry may be given alone. Read as a tuple. empty: it may have no entries."""

    entry: Kind
    lone: bool = True
    empty: bool = False

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return f"a list, each entry {self.entry.words}" + (f" (or one, {self.entry.words})" if self.lone else "")

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, (list, tuple)) or (self.lone and self.entry.accepts(value))

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not isinstance(value, (list, tuple)):
            if not (self.lone and self.entry.accepts(value)):
                return self.refuse(value, at, problems)
            value = [value]
        elif not value and not self.empty:
            return self.refuse(value, at, problems)
        read = [self.entry.read(entry, at.child(index), problems) for index, entry in enumerate(value)]
        return BAD if any(entry is BAD for entry in read) else tuple(read)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        entry = self.entry.schema()
        listed = {"type": "array", "items": entry, **({} if self.empty else {"minItems": 1})}
        return {"anyOf": [entry, listed]} if self.lone else listed


@dataclass(frozen=True)
class Mapped(Kind):
    """A mapping from names to values of one kind."""

    entry: Kind
    key: Text = Text()  # noqa: RUF009 (frozen)

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return f"a mapping from names to values, each {self.entry.words}"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, Mapping)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not isinstance(value, Mapping):
            return self.refuse(value, at, problems)
        read = {}
        for key, entry in value.items():
            if not isinstance(key, str):
                problems.append(
                    Problem(f"a name in {at.name} must be text, not {shown(key)}", at.place, "put the name in quotes")
                )
                continue
            name = self.key.read(key, at.child(key), problems)
            read[name] = self.entry.read(entry, at.child(key, named=True), problems)
        return BAD if BAD in read or any(entry is BAD for entry in read.values()) else read

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "object", "additionalProperties": self.entry.schema()}


@dataclass(frozen=True)
class Either(Kind):
    """The first alternative whose shape fits."""

    alternatives: tuple[Kind, ...]

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return ", or ".join(kind.words for kind in self.alternatives)

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return any(kind.accepts(value) for kind in self.alternatives)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        fitting = [kind for kind in self.alternatives if kind.accepts(value)]
        if not fitting:
            return self.refuse(value, at, problems)
        if len(fitting) == 1 and not isinstance(fitting[0], OneOf):
            return fitting[0].read(value, at, problems)
        for kind in fitting:
            trial: list[Problem] = []
            read = kind.read(value, at, trial)
            if not trial:
                return read
        return self.refuse(value, at, problems)

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        return next((hint for hint in (kind.hint(value) for kind in self.alternatives) if hint), None)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"anyOf": [kind.schema() for kind in self.alternatives]}


@dataclass(frozen=True)
class Nothing(Kind):
    """An absent value, or null."""

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return "left out"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return value is None

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        return None if value is None else self.refuse(value, at, problems)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "null"}
