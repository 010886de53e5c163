"""Safetensors files: damaged headers, damaged bytes, and odd files that are right."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from random import Random
from typing import Any

from fuzz import independent
from fuzz.cases import Command, command, generator
from fuzz.generators.common import merge_commands
from fuzz.mutation import NAMES, damaged_bytes, damaged_value, json_text, odd_value

SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
}


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@generator("tiny", share=9)
def safetensors_headers(rng: Random, room: Path) -> list[Command]:
    """The header's JSON damaged: entries, dtypes, shapes, offsets, names, metadata, names twice."""
    path = room / rng.choice(("base", "one")) / "model.safetensors"
    table, data = split(path.read_bytes())
    what = rng.random()
    if what < 0.15:
        for key in rng.sample(sorted(table), 2):
            table[rng.choice(NAMES)] = table.pop(key)
        text = json.dumps(table).encode()
    elif what < 0.3:
        table["__metadata__"] = rng.choice(
            ({"a": rng.choice(NAMES)}, odd_value(rng), {"format": "tf"}, {"x": "y" * 10**6})
        )
        text = json.dumps(table).encode()
    elif what < 0.4:
        text = _many(rng, table)
    elif what < 0.7:
        row = table[rng.choice([name for name in table if name != "__metadata__"])]
        row[rng.choice(("dtype", "shape", "data_offsets", "extra"))] = rng.choice(
            (
                odd_value(rng),
                rng.choice(list(SIZES)),
                [
                    rng.choice((-1, 0, 1, 8, 2**40, 2**62, 10**30, 1.0, "1", True))
                    for _ in range(rng.choice((0, 1, 2, 3, 70)))
                ],
            )
        )
        text = json.dumps(table).encode()
    else:
        text = json_text(rng, damaged_value(rng, table))
    path.write_bytes(joined(text, data))
    return merge_commands(rng)


def _many(rng: Random, table: dict[str, Any]) -> bytes:
    """Very many empty tensors, one name of them twice at times."""
    start = max(row["data_offsets"][1] for name, row in table.items() if name != "__metadata__")
    row = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [start, start]})
    names = [f"n{number}" for number in range(rng.choice((1000, 30_000)))]
    if rng.random() < 0.6:
        names.append(rng.choice(names))
    return (json.dumps(table)[:-1] + "".join(f', "{name}": {row}' for name in names) + "}").encode()


@generator("tiny", share=7)
def safetensors_bytes(rng: Random, room: Path) -> list[Command]:
    """Bytes changed, cut, put in anywhere in a weight file, or another kind of file in its place."""
    path = room / rng.choice(("base", "one")) / "model.safetensors"
    data = path.read_bytes()
    what = rng.random()
    if what < 0.5:
        data = damaged_bytes(rng, data[:200]) + data[200:]
    elif what < 0.8:
        data = damaged_bytes(rng, data)
    elif what < 0.9:
        data = (
            rng.choice(
                (
                    b"PK\x03\x04",
                    b"GGUF",
                    b"<!DOCTYPE html>",
                    b"\x80\x04",
                    b"version https://git-lfs",
                    b"\x93NUMPY",
                    b"\x89HDF\r\n\x1a\n",
                    b"",
                )
            )
            + data[rng.choice((0, 8)) :]
        )
    else:
        data = struct.pack("<Q", rng.choice((0, 1, 2**32, 2**63, 2**64 - 1, len(data)))) + data[8:]
    path.write_bytes(data)
    return merge_commands(rng)


def valid_file(rng: Random, names: list[str]) -> bytes:
    """A right file by the format's own words: any order, any names, empty tensors, scalars, every dtype."""
    table: dict[str, Any] = {}
    data = b""
    for name in names:
        dtype = rng.choice(("F32", "F32", "F32", "BF16", "F16", "F64", *SIZES))
        shape = [rng.choice((0, 1, 1, 2, 3, 7)) for _ in range(rng.randrange(4))]
        count = math.prod(shape)
        values = (
            b"\0" * (count * SIZES[dtype])
            if dtype != "F32"
            else struct.pack(f"<{count}f", *(rng.gauss(0, 1) for _ in range(count)))
        )
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    rows = list(table.items())
    rng.shuffle(rows)
    if rng.random() < 0.5:
        rows.insert(0, ("__metadata__", {"format": "pt", "é": "x"}))
    text = json.dumps(dict(rows), ensure_ascii=rng.random() < 0.5).encode()
    return joined(text + b" " * (-len(text) % 8), data)


@generator("tiny", share=6)
def safetensors_that_are_right(rng: Random, room: Path) -> list[Command]:
    """Files that the format allows, written by hand: what is accepted must be what the safetensors library reads."""
    odd = [name for name in NAMES if name not in ("\ud800", "__metadata__")]
    names = [
        rng.choice((f"model.layers.{rng.randrange(12)}.mlp.weight", f"t{rng.randrange(99)}", rng.choice(odd)))
        for _ in range(rng.randrange(1, 12))
    ]
    names = list(dict.fromkeys(names))
    seed = rng.getrandbits(32)
    (room / "base" / "model.safetensors").write_bytes(valid_file(Random(seed), names))
    (room / "one" / "model.safetensors").write_bytes(
        valid_file(Random(seed if rng.random() < 0.7 else seed + 1), names)
    )
    first = command("inspect", "base", "--json", "--tensors", check=independent.inspected("base"), must=True)
    return [first, *merge_commands(rng)]
