"""The page of what commands print with --json: `python -m taskmerge.cli.json_docs > docs/json.md`."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from taskmerge.cli.results import RESULTS, And, Failed
from taskmerge.declarations import Doc

_HEAD = """# JSON

Made from the declarations in `taskmerge/cli/results/` by `python -m taskmerge.cli.json_docs`; edit those, not this
page.

Every command takes `--json` and then prints one JSON object on stdout, and nothing else there, even if libraries
print; progress, notes and warnings stay on stderr (`-q` leaves warnings and errors). A number that JSON does not have
(NaN, infinity) is `null`. Every key below is always present, except those marked *optional*; later versions may add
keys. [Exit codes](commands.md) are the same with and without `--json`.

An error is an object with the one key `error`, also for an option that does not exist and for a fault of taskmerge
itself:

```json
{"error": {"kind": "UsageError", "text": "…", "problems": [{"what": "…", "place": "merge.yaml:3", "next_move": "…"}],
           "exit_code": 2}}
```

`schema` without `--out` prints the JSON Schema of recipes. [In CI](ci.md) shows how the keys are used.
"""
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true/false", type(None): "null", Any: "any"}


def page() -> str:
    """Return the text of docs/json.md."""
    named: dict[str, Any] = {}
    parts = [_HEAD, "## Errors\n", *_section(Failed, named)]
    for command, shapes in sorted(RESULTS.items()):
        parts.append(f"## {command}\n")
        for shape in shapes:
            parts += _section(shape, named)
    parts.append("## Parts of several results\n")
    done: set[str] = set()
    while left := [name for name in named if name not in done]:
        for name in left:
            done.add(name)
            parts += [f"### {name} {{#{name.lower()}}}\n", *_section(named[name], named)]
    return "\n".join(parts)


def _section(shape: Any, named: dict[str, Any]) -> Iterator[str]:
    """Words and the table of keys of one shape. named: what it refers to, by name."""
    own, more = _taken_apart(shape)
    text = inspect.cleandoc(own.__doc__ or "")
    if text and not text.startswith(("dict(", f"{own.__name__}(")):
        yield text + "\n"
    yield "| key | type | meaning |\n|---|---|---|"
    optional: frozenset[str] = getattr(own, "__optional_keys__", frozenset())
    for key, hint in hints_of(own).items():
        kind, meaning = _meaning(hint)
        yield f"| `{key}` | {_words(kind, named)}{' *optional*' if key in optional else ''} | {meaning} |"
    for key, (kind, meaning) in more.items():
        yield f"| `{key}` | {_words(kind, named)} | {meaning} |"
    yield ""


def _taken_apart(shape: Any) -> tuple[Any, Mapping[str, tuple[Any, str]]]:
    if get_origin(shape) is Annotated:
        extra = next((one for one in get_args(shape)[1:] if isinstance(one, And)), None)
        if extra is not None:
            return extra.shape, extra.more
    return shape, {}


def hints_of(shape: Any) -> dict[str, Any]:
    """Key -> type, of a TypedDict or a dataclass."""
    hints = get_type_hints(shape, include_extras=True)
    return (
        {row.name: hints[row.name] for row in dataclasses.fields(shape)} if dataclasses.is_dataclass(shape) else hints
    )


def _meaning(hint: Any) -> tuple[Any, str]:
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        said = next((one.text for one in marks if isinstance(one, Doc)), "")
        return (kind if any(isinstance(one, Doc) for one in marks) else hint), said
    return hint, ""


def _words(kind: Any, named: dict[str, Any]) -> str:
    own = _taken_apart(kind)[0]
    if is_typeddict(own) or dataclasses.is_dataclass(own):
        name = own.__name__
        named.setdefault(name, kind)
        return f"[{name}](#{name.lower()})"
    if get_origin(kind) is Annotated:
        return _words(get_args(kind)[0], named)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one, named) for one in arguments)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (list, tuple) or kind in (list, tuple):
        inner = [one for one in arguments if one is not Ellipsis]
        return "list of " + ", ".join(dict.fromkeys(_words(one, named) for one in inner)) if inner else "list"
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return f"table of {_words(arguments[1], named)}"
    return _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))


if __name__ == "__main__":
    sys.stdout.write(page())
