"""Arguments of Python calls, checked by the kinds that check a recipe's values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import PurePath
from typing import Any, TypeVar, cast

from taskmerge.declarations.containers import Either, Listed, Nothing
from taskmerge.declarations.kinds import BAD, At, Kind, Number, Text, shown
from taskmerge.errors import Problem, UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

COUNT = Number(1, None, integer=True)
"""A number of things, at least one."""
TEXTS = Listed(Text(), empty=True)
"""Names or patterns; one may be given alone."""


@dataclass(frozen=True)
class Named(Kind):
    """A mapping from names to objects, which are not checked. what: the objects, in the plural."""

    what: str

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return f"a mapping from names to {self.what}"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, Mapping)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        if not isinstance(value, Mapping):
            return self.refuse(value, at, problems)
        if wrong := [name for name in value if not isinstance(name, str)]:
            problems.append(
                Problem(f"a name in {at.name} must be text, not {shown(wrong[0])}", at.place, "write the name as text")
            )
            return BAD
        return value

    def hint(self, value: Any) -> str | None:
        """Return a correction for a value of the wrong type; None if there is no good guess."""
        return f"give the {self.what} names: {{'first': …, 'second': …}}" if isinstance(value, (list, tuple)) else None

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "object"}


@dataclass(frozen=True)
class Instance(Kind):
    """An object of one class. said: its name in messages; default: its class."""

    cls: type
    said: str = ""

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return self.said or f"a {self.cls.__name__}"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, self.cls)

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        return value if isinstance(value, self.cls) else self.refuse(value, at, problems)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {}


@dataclass(frozen=True)
class Place(Kind):
    """A path or a uri, as text or as a path object."""

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        return "a path"

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, (str, PurePath))

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        return value if self.accepts(value) and str(value).strip() else self.refuse(value, at, problems)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "string", "minLength": 1}


def optional(kind: Kind) -> Kind:
    """Return the kind that also accepts None."""
    return Either((kind, Nothing()))


def plain(value: Any) -> Any:
    """Return a value in Python's own classes: numbers and lists for those of numpy and torch.

    Arrays of more than one dimension and objects of other classes stay what they are; no kind accepts them.
    """
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist") and getattr(value, "ndim", 2) <= 1:
        return value.tolist()
    return value


def read_arguments(place: str, given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the values of `given` that have a kind, in their final form.

    Args:
        place: the call, as messages name it.
        given: name -> value.
        kinds: name -> kind; a name that is not in `given` is not checked.

    Raises:
        UsageError: with every value that its kind refuses.
    """
    problems: list[Problem] = []
    read = {
        name: kind.read(_as_read(given[name], kind), At.fixed(place, name), problems)
        for name, kind in kinds.items()
        if name in given
    }
    if problems:
        raise UsageError(problems)
    return read


def _as_read(value: Any, kind: Kind) -> Any:
    """The value as `plain` gives it; objects that the kind does not read are not looked into."""
    return value if _opaque(kind) else plain(value)


def _opaque(kind: Kind) -> bool:
    return isinstance(kind, (Named, Instance)) or (isinstance(kind, Either) and any(map(_opaque, kind.alternatives)))


def checked_arguments(**kinds: Kind) -> Callable[[Function], Function]:
    """Decorate a public function: check those of its arguments that have a kind before it does anything.

    Args:
        kinds: argument -> what it may be.

    Returns:
        The decorator. The function gets the values in their final form, and raises UsageError for wrong ones.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        if unknown := [name for name in kinds if name not in signature.parameters]:
            raise TypeError(f"{function.__name__} has no argument {unknown[0]!r}")

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                bound = signature.bind(*arguments, **named)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            bound.arguments.update(read_arguments(function.__name__, bound.arguments, kinds))
            return function(*bound.args, **bound.kwargs)

        return cast(Function, call)

    return decorate
