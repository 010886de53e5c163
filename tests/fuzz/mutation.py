"""Damage of bytes, texts and JSON values, chosen by a random generator."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

NAMES = (
    "",
    " ",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "[bold]x[/bold]",
    "[/o]",
    "[link=http://x]y[/link]",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\r\x1b[2K",
    "é",
    "\u202eright",
    "\ud800",
    "名前",
    "x" * 5000,
    "${HOME}",
    "~",
    "-rf",
    "--out",
    "%s%n",
    "a\nb",
    "\t",
    "*",
    "{0..3}",
    "{a,b",
    "[!",
    "model.layers.0",
    "__metadata__",
    "None",
    "nul",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3.5,
    -0.0,
    1e308,
    1e400,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**63,
    -(2**63),
    2**64,
    10**40,
    10**4000,
    "",
    "0",
    "1",
    "²",
    "١",
    "x",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": {}},
    [1, 2, 3],
    {"a": 1},
    "\ud800",
)


def odd_value(rng: Random) -> Any:
    if rng.random() < 0.7:
        return rng.choice(VALUES)
    if rng.random() < 0.5:
        return rng.choice(NAMES)
    deep: Any = rng.choice(VALUES)
    for _ in range(rng.choice((3, 50, 300))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def damaged_bytes(rng: Random, data: bytes, most: int = 6) -> bytes:
    """Some bytes changed, cut, doubled, put in or moved."""
    content = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(content) + 1)
        span = min(len(content) - at, rng.choice((1, 1, 2, 4, 8, 64, 1000)))
        what = rng.randrange(7)
        if what == 0 and span:
            content[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            content[at : at + span] = rng.randbytes(span)
        elif what == 2:
            del content[at : at + span]
        elif what == 3:
            content[at:at] = rng.choice((b"\0", b"\xff", b"\n", b'"', b"{", rng.randbytes(8), b"\xff\xfe", b"0" * 30))
        elif what == 4:
            content[at:at] = content[at : at + span]
        elif what == 5:
            content[at : at + span] = rng.choice((b"\0", b"\xff")) * span
        else:
            del content[at:]
    return bytes(content)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value, the whole first."""
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for number in range(len(value)):
            found += places(value[number], (*path, number))
    return found


def damaged_value(rng: Random, value: Any, times: int | None = None) -> Any:
    """A JSON value with some of its places put in another's place, taken away, doubled or made odd."""
    value = json.loads(json.dumps(value))
    for _ in range(times or rng.choice((1, 1, 1, 2, 4))):
        every = places(value)
        path = rng.choice(every[1:] or every)
        if not path or rng.random() < 0.03:
            value = odd_value(rng)
            continue
        inside = value
        for step in path[:-1]:
            inside = inside[step]
        last = path[-1]
        what = rng.randrange(5)
        if what == 0:
            del inside[last]
        elif what == 1 and isinstance(inside, dict):
            inside[rng.choice(NAMES)] = inside.pop(last)
        elif what == 2:
            inside[last] = _at(value, rng.choice(every))
            value = json.loads(json.dumps(value))  # what is at two places is not one
        elif what == 3 and isinstance(inside, list):
            inside.insert(last, odd_value(rng))
        else:
            inside[last] = odd_value(rng)
    return value


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return json.loads(json.dumps(value))


def json_text(rng: Random, value: Any) -> bytes:
    """The JSON of a value, at times broken as text."""
    try:
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    except RecursionError:
        text = '{"a":' * 900 + "1" + "}" * 900
    data = text.encode("utf-8", "surrogatepass")
    what = rng.random()
    if what < 0.1:
        return damaged_bytes(rng, data)
    if what < 0.13:
        return b"\xef\xbb\xbf" + data
    if what < 0.16:
        return text.encode("utf-16", "surrogatepass")
    if what < 0.18:
        return data + rng.choice((b",", b"{}", b"\0", b"// end", b"\n\n"))
    if what < 0.2 and data.startswith(b"{") and len(data) > 2:
        return b'{"a": 1, "a": 2, ' + data[1:]
    if what < 0.22:
        return rng.choice((b"", b" ", b"null", b"[" * 100_000, b'{"a":' * 100_000, b'"', b"NaN", b"9" * 5000))
    return data


def damage_json(rng: Random, path: Path) -> None:
    """Damages a JSON file in place."""
    path.write_bytes(json_text(rng, damaged_value(rng, json.loads(path.read_text("utf-8")))))


def damage_bytes(rng: Random, path: Path) -> None:
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))
