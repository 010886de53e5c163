"""JSON that is read: strict, bounded, and checked against a declaration. The only parser of JSON.

A declaration is a type: a TypedDict names the keys that are used (others pass), a dataclass is built from its fields,
and `dict[str, X]`, `list[X]`, `tuple[X, ...]`, `X | None`, `Literal` and plain types mean what they say.

```python
class Index(TypedDict):
    weight_map: dict[str, str]

index = parse_json(text, Index, "model.safetensors.index.json")  # an Index, or CheckpointError
```
The number words NaN and Infinity, which JSON does not have but Python writes, are read; a declared number is finite.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import repeat
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from taskmerge.errors import CheckpointError, TaskmergeError, clipped, few

_ENDLESS = re.compile(r"[0-9]{300}")
DEEPEST = 100
"""Tables and lists inside one another."""
Shape = TypeVar("Shape")


class JsonError(ValueError):
    """The text is not JSON, or not of the declared shape. Its text is a sentence for the user."""


def parse_json(
    text: str | bytes,
    shape: type[Shape] | Any = Any,
    place: str = "",
    next_move: str | None = None,
    error: type[TaskmergeError] = CheckpointError,
) -> Shape:
    """Return the value that a text of JSON holds.

    Args:
        text: bytes are UTF-8 without a mark of byte order.  shape: the declaration; Any takes everything.  place: what
            messages call the text.  next_move: for messages.  error: what is raised.

    Raises:
        TaskmergeError: of the given class, for text that is not JSON (broken, a name twice in one table, nested deeper
            than `DEEPEST`, half of a surrogate pair) or not of the shape.
    """
    try:
        found: Shape = checked(load(text), shape)
        return found
    except JsonError as told:
        raise error(str(told), place or None, next_move) from None


def check_json(value: Any, shape: type[Shape] | Any, place: str = "", next_move: str | None = None) -> Shape:
    """Return a value that was read from JSON before, as the declaration has it. Raises CheckpointError."""
    try:
        found: Shape = checked(value, shape)
        return found
    except JsonError as told:
        raise CheckpointError(str(told), place or None, next_move) from None


def as_read(value: Any) -> Any:
    """Return plain data as a reader of its JSON will have it: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def load(text: str | bytes) -> Any:
    """Return the value that a text holds. Raises JsonError."""
    try:
        words = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(words, object_pairs_hook=_unique, parse_int=_bounded if _ENDLESS.search(words) else None)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise JsonError(f"not valid JSON: {clipped(str(error), 200)}") from None
    if _depth_beyond(value, DEEPEST):
        raise JsonError(f"not valid JSON: more than {DEEPEST} nested objects and lists")
    if "\\ud" in words or "\\uD" in words:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise JsonError("not valid JSON: half of a surrogate pair, which is not a valid character") from None
    return value


def checked(value: Any, shape: Any) -> Any:
    """Return a value read from JSON as the declaration has it. Raises JsonError naming the key that does not fit."""
    return _fitted(value, shape, "", False)


def _bounded(digits: str) -> int:
    """An integer that is also a number for calculations: no larger than a float64 can be."""
    if math.isinf(float(digits)):
        raise JsonError(f"not valid JSON: {clipped(digits, 40)} is too large for a number")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"not valid JSON: the name {clipped(repr(twice), 200)} occurs twice in one object")
    return table


def _depth_beyond(value: Any, most: int) -> bool:
    level: list[Any] = [[value]]
    for _ in range(most + 2):  # exact types: what the parser makes, and the headers of models have very many of them
        inner = [entry for one in level for entry in (one.values() if type(one) is dict else one)
                 if type(entry) is dict or type(entry) is list]  # fmt: skip
        if not inner:
            return False
        level = inner
    return True


# ------------------------------------------------------------------------------------------------------ shapes


def _fitted(value: Any, shape: Any, at: str, ours: bool) -> Any:
    """ours: inside a dataclass, written by this program: a number that is none is null there."""
    if shape is Any:
        return value
    origin, arguments = get_origin(shape), get_args(shape)
    if origin in (Union, UnionType):
        return _either(value, shape, arguments, at, ours)
    if is_typeddict(shape):
        return _table(value, shape, at, ours)
    if dataclasses.is_dataclass(shape):
        return _built(value, shape, at)
    if shape is dict or origin in (dict, Mapping):
        entry = arguments[1] if arguments else Any
        if entry is str and type(value) is dict and all(type(one) is str for one in value.values()):
            return dict(value)  # the index of a model: very many
        return {key: _fitted(one, entry, _inside(at, key), ours) for key, one in _mapping(value, at).items()}
    if shape is list or origin in (list, tuple):
        if not isinstance(value, list):
            raise _wrong(value, at, "a list")
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            raise _wrong(value, at, f"a list of {len(arguments)}")
        kinds = arguments if fixed else repeat(arguments[0] if arguments else Any)
        read = [_fitted(one, kind, f"{at}[{place}]", ours) for place, (one, kind) in enumerate(zip(value, kinds))]  # noqa: B905
        return tuple(read) if origin is tuple else read
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise _wrong(value, at, f"one of {', '.join(map(repr, arguments))}")
        return value
    return _scalar(value, shape, at, ours)


def _scalar(value: Any, shape: Any, at: str, ours: bool) -> Any:
    if shape is NoneType or shape is None:
        if value is not None:
            raise _wrong(value, at, "null")
        return None
    if shape is float:
        if ours and value is None:
            return math.nan
        if type(value) not in (int, float) or not (ours or _finite(value)):
            raise _wrong(value, at, "a number")
        return value
    words = {str: "text", int: "a whole number", bool: "true or false", Path: "a path"}[shape]
    if type(value) is not (str if shape is Path else shape):
        raise _wrong(value, at, words)
    return Path(value) if shape is Path else value


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _either(value: Any, shape: Any, arguments: tuple[Any, ...], at: str, ours: bool) -> Any:
    if value is None and NoneType in arguments:
        return None
    rest = [one for one in arguments if one is not NoneType]
    for kind in rest:
        try:
            return _fitted(value, kind, at, ours)
        except JsonError:
            if len(rest) == 1:
                raise
    raise _wrong(value, at, " or ".join(getattr(kind, "__name__", str(kind)) for kind in rest))


def _table(value: Any, shape: Any, at: str, ours: bool) -> dict[str, Any]:
    table = dict(_mapping(value, at))
    _complete(table, sorted(shape.__required_keys__), at)
    for key, kind in _hints(shape).items():
        if key in table:
            table[key] = _fitted(table[key], kind, _inside(at, key), ours)
    return table


def _built(value: Any, shape: Any, at: str) -> Any:
    table, hints = _mapping(value, at), _hints(shape)
    rows = dataclasses.fields(shape)
    default = dataclasses.MISSING
    _complete(table, [row.name for row in rows if row.default is default and row.default_factory is default], at)
    given = [row.name for row in rows if row.name in table]
    return shape(**{name: _fitted(table[name], hints[name], _inside(at, name), True) for name in given})


def _complete(table: Mapping[str, Any], required: Sequence[str], at: str) -> None:
    if lost := [key for key in required if key not in table]:
        raise JsonError(f"{at or 'it'} lacks {few(map(repr, lost))}")


@cache
def _hints(shape: Any) -> dict[str, Any]:
    return get_type_hints(shape)


def _mapping(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(value, at, "a table")
    return value


def _inside(at: str, key: str) -> str:
    return clipped(f"{at}.{key}" if at else key, 200)


def _wrong(value: Any, at: str, wanted: str) -> JsonError:
    return JsonError(f"{at or 'it'} must be {wanted}, not {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    return clipped(repr(value) if isinstance(value, str) else str(value).lower(), 120)
