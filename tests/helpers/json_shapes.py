"""What commands print with --json, held against what the page says of it: every key there, and none besides."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from taskmerge.cli.json_docs import _taken_apart, hints_of
from taskmerge.cli.results import RESULTS, Failed

SEEN: set[tuple[str, str]] = set()
"""(shape, key) of all that was checked."""


def check_documented(command: str, out: str) -> None:
    """Fail when a command's stdout is not one JSON object of a shape that is documented for it."""
    data = json.loads(out, parse_constant=lambda word: pytest_fail(f"{word} is not JSON"))
    assert isinstance(data, dict), out[:200]
    shapes = (Failed,) if "error" in data else RESULTS.get(command, ())
    problems = {str(shape): problems_of(data, shape) for shape in shapes}
    assert any(not found for found in problems.values()), (command, problems, sorted(data))


def pytest_fail(text: str) -> None:
    raise AssertionError(text)


def problems_of(value: Any, shape: Any, at: str = "") -> list[str]:
    """What of a value is not as documented."""
    if get_origin(shape) is Annotated and _taken_apart(shape)[0] is shape:
        return problems_of(value, get_args(shape)[0], at)
    own, more = _taken_apart(shape)
    if is_typeddict(own) or dataclasses.is_dataclass(own):
        if not isinstance(value, Mapping):
            return [f"{at}: {type(value).__name__}, not a table"]
        keys = {**hints_of(own), **{key: kind for key, (kind, _) in more.items()}}
        needed = set(keys) - set(getattr(own, "__optional_keys__", ()))
        found = [f"{at}.{key}: documented, not there" for key in sorted(needed - value.keys())]
        found += [f"{at}.{key}: not documented" for key in sorted(value.keys() - keys.keys())]
        loose = dataclasses.is_dataclass(own)
        for key in value.keys() & keys.keys():
            SEEN.add((own.__name__, key))
            if not (loose and value[key] is None):  # a number of ours that is none is null
                found += problems_of(value[key], keys[key], f"{at}.{key}")
        return found
    return _plain(value, own, at)


def _plain(value: Any, shape: Any, at: str) -> list[str]:
    origin, arguments = get_origin(shape), get_args(shape)
    if shape is Any:
        return []
    if origin in (Union, types.UnionType):
        each = [problems_of(value, one, at) for one in arguments]
        return [] if any(not found for found in each) else each[0]
    if origin is Literal:
        return [] if value in arguments else [f"{at}: {value!r}"]
    if origin in (list, tuple) or shape in (list, tuple):
        if not isinstance(value, list):
            return [f"{at}: {type(value).__name__}, not a list"]
        if origin is tuple and Ellipsis not in arguments:
            return [line for one, kind in zip(value, arguments, strict=False) for line in problems_of(one, kind, at)]
        return [line for one in value for line in problems_of(one, arguments[0] if arguments else Any, f"{at}[]")]
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return [f"{at}: {type(value).__name__}, not a table"]
        return [line for one in value.values() for line in problems_of(one, arguments[1], f"{at}.*")]
    if shape is type(None):
        return [] if value is None else [f"{at}: not null"]
    kinds: Any = {float: (int, float), int: int, str: str, bool: bool}.get(shape, shape)
    return [] if isinstance(value, kinds) else [f"{at}: {value!r} is not {shape}"]
