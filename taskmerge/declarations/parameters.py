"""Signatures and dataclasses as parameter rows: the one declaration that checks, help, docs and schema come from.

```python
def median(deltas, weights, *, scale: Annotated[float, Between(0, 2), Doc("step along the median")] = 1.0): ...
parameters_of(median)  # (Parameter(name="scale", kind=Number(0, 2), default=1.0, doc="step along the median"),)
```
Only the annotations read are resolved, so `from __future__ import annotations` costs nothing and imports nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from taskmerge.declarations.containers import Either, Graded, Listed, Mapped, Nothing, NumberEach
from taskmerge.declarations.kinds import BAD, At, Flag, Kind, Number, OneOf, Text, shown
from taskmerge.errors import Problem, did_you_mean, nearest


class DeclarationError(TypeError):
    """A signature or dataclass declares something that cannot be checked; met by its author, at import."""


@dataclass(frozen=True)
class Doc:
    """The meaning of a parameter in one line."""

    text: str


@dataclass(frozen=True)
class Between:
    """Bounds of a number; None: no bound. open: the ends that are excluded."""

    low: float | None
    high: float | None
    open: Literal["", "low", "high", "both"] = ""


@dataclass(frozen=True)
class Gradient:
    """A mark for a number that may also be a list of numbers: a gradient over depth."""


@dataclass(frozen=True)
class PerSpecialist:
    """Marks a method's number that may also be given for each specialist: a tuple in a call, names in a recipe."""


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True)
class Parameter:
    """One named value. default: REQUIRED without a default."""

    name: str
    kind: Kind
    default: Any
    doc: str

    @property
    def required(self) -> bool:
        """True if there is no default."""
        return self.default is REQUIRED

    def schema(self) -> dict[str, Any]:
        """JSON Schema fragment, with description and default."""
        schema: dict[str, Any] = {**self.kind.schema(), "description": self.doc}
        plain = dataclasses.is_dataclass(self.default) or self.default in (REQUIRED, None)
        if not plain:
            schema["default"] = list(self.default) if isinstance(self.default, tuple) else self.default
        return schema

    @property
    def default_words(self) -> str:
        """The default as text for tables; "" for an empty one."""
        if self.required:
            return "required"
        if isinstance(self.default, bool):
            return shown(self.default)
        nothing = self.default is None or self.default in ((), {}) or dataclasses.is_dataclass(self.default)
        return "" if nothing else str(self.default)

    def help(self) -> str:
        """Return one line of help text."""
        default = f"; default {self.default_words}" if self.default_words and not self.required else ""
        return f"{self.name}: {self.doc} ({self.kind.words}{'; required' if self.required else default})"

    def row(self) -> str:
        """Return one row of a Markdown table: name, valid values, default, meaning."""
        cells = (f"`{self.name}`", self.kind.words, self.default_words, self.doc)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def check(value: Any, parameter: Parameter, place: str) -> Any:
    """Return the value in its final form, or the `Problem` with it."""
    problems: list[Problem] = []
    read = parameter.kind.read(value, At.fixed(place, parameter.name), problems)
    return problems[0] if problems else read


def place_field() -> Any:
    """Return a dataclass field that receives the place of its section ("merge.yaml:12")."""
    return field(default="", compare=False, repr=False, metadata={"filled": "place"})


def name_field() -> Any:
    """Return a dataclass field that receives the key of its section."""
    return field(default="", metadata={"filled": "name"})


@dataclass(frozen=True)
class Section(Kind):
    """A mapping whose keys are the fields of a dataclass. A class variable `shorthand` names the one field that
    a plain value may stand for; a method `problems()` of the class checks fields against one another; a class whose
    keys depend on its values reads itself by the class methods `read_section` and `section_schema`."""

    cls: type

    @property
    def words(self) -> str:
        """The description of valid values in messages, after "must be"."""
        names = ", ".join(parameter.name for parameter in fields_of(self.cls))
        brief = f"{self._lone.kind.words} or " if self._lone else ""
        return f"{brief}a mapping ({names})"

    @property
    def _lone(self) -> Parameter | None:
        lone = getattr(self.cls, "shorthand", None)
        return next((row for row in fields_of(self.cls) if row.name == lone), None)

    def accepts(self, value: Any) -> bool:
        """Return whether the value has the type of this kind; bounds are not checked."""
        return isinstance(value, Mapping) or (self._lone is not None and self._lone.kind.accepts(value))

    def read(self, value: Any, at: At, problems: list[Problem]) -> Any:
        """Return the value in checked form; for an invalid one, add to `problems` and return BAD."""
        own_reader = getattr(self.cls, "read_section", None)
        if own_reader and isinstance(value, Mapping):
            return own_reader(value, at, problems)
        if self._lone and not isinstance(value, Mapping):
            if not self._lone.kind.accepts(value):
                return self.refuse(value, at, problems)
            read = self._lone.kind.read(value, at, problems)
            values = {self._lone.name: read}
            return BAD if read is BAD else self.build(values, at, problems)
        if not isinstance(value, Mapping):
            return self.refuse(value, at, problems)
        before = len(problems)
        values = read_mapping(value, fields_of(self.cls), at, problems)
        return BAD if len(problems) > before else self.build(values, at, problems)

    def build(self, values: Mapping[str, Any], at: At, problems: list[Problem]) -> Any:
        """Return an instance from read values, its place and name filled in, checked as a whole."""
        filled: dict[str, Any] = {}
        for entry in dataclasses.fields(self.cls):
            if entry.metadata.get("filled") == "place":
                filled[entry.name] = at.place
            if entry.metadata.get("filled") == "name" and at.path:
                filled[entry.name] = str(at.path[-1])
        section = self.cls(**values, **filled)
        found = list(section.problems()) if hasattr(section, "problems") else []
        problems.extend(found)
        return BAD if found else section

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        own_schema = getattr(self.cls, "section_schema", None)
        schema = own_schema() if own_schema else object_schema(fields_of(self.cls))
        return {"anyOf": [self._lone.kind.schema(), schema]} if self._lone else schema


def object_schema(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """JSON Schema of a mapping with exactly these keys."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {parameter.name: parameter.schema() for parameter in parameters},
        "additionalProperties": False,
    }
    required = [parameter.name for parameter in parameters if parameter.required]
    return {**schema, "required": required} if required else schema


def read_mapping(
    value: Mapping[Any, Any], parameters: Sequence[Parameter], at: At, problems: list[Problem]
) -> dict[str, Any]:
    """Check each key against its parameter. Returns what was given, in final form; defaults are not filled in."""
    known = {parameter.name: parameter for parameter in parameters}
    read: dict[str, Any] = {}
    misspelt: set[str | None] = set()
    for key, entry in value.items():
        if key in known:
            read[key] = known[key].kind.read(entry, at.child(key), problems)
        else:
            where = f" in {at.dotted}" if at.path else ""
            place = at.child(key).place if isinstance(key, str) else at.place
            problems.append(Problem(f"unknown key {str(key)!r}{where}", place, did_you_mean(str(key), known)))
            misspelt.add(nearest(str(key), known))
    for parameter in parameters:
        if parameter.required and parameter.name not in value and parameter.name not in misspelt:
            where = f"{at.dotted} lacks" if at.path else "the recipe lacks"
            move = f"add {parameter.name}: {parameter.doc} ({parameter.kind.words})"
            problems.append(Problem(f"{where} {parameter.name!r}", at.place, move))
    return read


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the keyword-only arguments of a function as parameter rows, in order.

    Raises DeclarationError for an annotation that cannot be checked, a missing one, or a default outside its bounds.
    """
    names = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    scope = {**getattr(function, "__globals__", {}), **names}
    rows = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        where = f"{argument.name} of {function.__name__}"
        if argument.annotation is inspect.Parameter.empty:
            raise DeclarationError(f"{where} has no annotation; write {argument.name}: Annotated[float, Doc('...')]")
        default = REQUIRED if argument.default is inspect.Parameter.empty else argument.default
        rows.append(_parameter(argument.name, argument.annotation, default, scope, where))
    return tuple(rows)


def fields_of(cls: type) -> tuple[Parameter, ...]:
    """Return the fields of a dataclass as parameter rows, without those filled in by the reader (place, name)."""
    rows = _FIELDS.get(cls)
    if rows is None:
        scope = vars(sys.modules[cls.__module__])
        rows = _FIELDS[cls] = tuple(
            _parameter(entry.name, entry.type, _default_of(entry), scope, f"{entry.name} of {cls.__name__}")
            for entry in dataclasses.fields(cls)
            if "filled" not in entry.metadata
        )
    return rows


_FIELDS: dict[type, tuple[Parameter, ...]] = {}


def _default_of(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return REQUIRED if entry.default is dataclasses.MISSING else entry.default


def _parameter(name: str, annotation: Any, default: Any, scope: Mapping[str, Any], where: str) -> Parameter:
    while isinstance(annotation, str):
        try:
            annotation = eval(annotation, dict(scope))
        except Exception as error:
            raise DeclarationError(f"{where}: the annotation {annotation!r} cannot be read: {error}") from None
    doc = next((mark.text for mark in _marks(annotation) if isinstance(mark, Doc)), "")
    row = Parameter(name, kind_of(annotation, where), default, doc)
    if default is not REQUIRED and not dataclasses.is_dataclass(default) and default not in (None, (), {}):
        problem = check(default, row, where)
        if isinstance(problem, Problem):
            raise DeclarationError(f"{where}: the default contradicts its own declaration: {problem.what}")
    return row


def _marks(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


_SCALARS: dict[Any, Kind] = {
    float: Number(),
    int: Number(integer=True),
    bool: Flag(),
    str: Text(),
    None: Nothing(),
    type(None): Nothing(),
}


def kind_of(annotation: Any, where: str) -> Kind:
    """Return the kind an annotation declares. Raises DeclarationError for one that cannot be checked."""
    marks = _marks(annotation)
    if marks:
        return _marked(kind_of(get_args(annotation)[0], where), marks, where)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None and isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Section(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if origin is Literal and all(type(choice) in (str, int) for choice in arguments):
        return OneOf(arguments)
    if origin in (Union, types.UnionType):
        return Either(tuple(kind_of(argument, where) for argument in arguments))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return Listed(kind_of(arguments[0], where))
    if origin in (dict, Mapping):
        key = kind_of(arguments[0], where)
        if isinstance(key, Text):
            return Mapped(kind_of(arguments[1], where), key)
    raise DeclarationError(
        f"{where}: {annotation!r} cannot be checked; use float, int, bool, str, Literal, tuple[X, ...], "
        "Mapping[str, X], a dataclass, a union of these, or Annotated[...] with Between, Doc, Gradient, "
        "PerSpecialist or a Kind"
    )


def _marked(kind: Kind, marks: tuple[Any, ...], where: str) -> Kind:
    for mark in marks:
        if isinstance(mark, Doc):
            continue
        if isinstance(mark, Kind):
            kind = mark
            continue
        numbers = [
            part for part in (kind.alternatives if isinstance(kind, Either) else (kind,)) if type(part) is Number
        ]
        if len(numbers) != 1 or not isinstance(mark, (Between, Gradient, PerSpecialist)):
            raise DeclarationError(f"{where}: {mark!r} does not apply to {kind.words}")
        kind = _narrowed(kind, numbers[0], mark)
    return kind


def _narrowed(kind: Kind, number: Number, mark: Between | Gradient | PerSpecialist) -> Kind:
    """The kind with what a mark says about its number."""
    if isinstance(mark, Gradient):
        # `float | tuple[float, ...]` is how a type checker is told of a gradient.
        return Graded(number)
    if isinstance(mark, PerSpecialist):
        return NumberEach(number)
    bounded = Number(mark.low, mark.high, mark.open in ("low", "both"), mark.open in ("high", "both"), number.integer)
    if isinstance(kind, Either):
        return Either(tuple(bounded if part is number else part for part in kind.alternatives))
    return bounded
