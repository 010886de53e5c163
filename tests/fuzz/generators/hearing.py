"""Sounds, pictures and the data sets that name them, for a model that hears and sees."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, command, generator
from fuzz.mutation import NAMES, damaged_bytes, damaged_value, json_text, odd_value


def _evaluate(file: str) -> Command:
    return command("evaluate", "model", "--retrieval", f"set={file}", "--json")


@generator("hearing", share=4)
def sounds(rng: Random, room: Path) -> list[Command]:
    """Sound files: headers and samples damaged, empty, of other formats, of hours by their own words."""
    path = room / "dog.wav"
    data = path.read_bytes()
    what = rng.randrange(6)
    if what == 0:
        data = damaged_bytes(rng, data[:44]) + data[44:]
    elif what == 1:
        data = damaged_bytes(rng, data)
    elif what == 2:
        field = rng.choice((4, 16, 20, 22, 24, 28, 32, 34, 40))
        data = data[:field] + struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1, 48000))) + data[field + 4 :]
    elif what == 3:
        data = data[:44] + rng.choice((b"", b"\0", b"\xff\x7f" * 9))
    elif what == 4:
        data = rng.choice((b"fLaC", b"OggS", b"ID3\x04", b"FORM", b"\x1aE\xdf\xa3", b"")) + data[4:]
    else:  # a float WAV of values that are none
        values = struct.pack("<4f", float("nan"), float("inf"), 1e30, 0.0) * 400
        data = (
            b"RIFF"
            + struct.pack("<I", 36 + len(values))
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 3, 1, 16000, 64000, 4, 32)
            + b"data"
            + struct.pack("<I", len(values))
            + values
        )
    path.write_bytes(data)
    return [_evaluate("sounds.jsonl")]


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@generator("hearing", share=4)
def pictures(rng: Random, room: Path) -> list[Command]:
    """Picture files: bytes damaged, sizes of gigapixels by their own words, other formats, no pixels."""
    path = room / "dog.png"
    data = path.read_bytes()
    what = rng.randrange(5)
    if what == 0:
        data = damaged_bytes(rng, data)
    elif what == 1:
        size = rng.choice(((0, 0), (1, 1), (1, 60_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (3000, 1)))
        data = png(*size, bytes(1 + 3 * min(size[0], 100)) * min(size[1], 100))
    elif what == 2:
        data = png(
            16, 16, rng.randbytes(rng.choice((0, 10, 784))), rng.choice((1, 3, 8, 16)), rng.choice((0, 2, 3, 4, 6, 9))
        )
    elif what == 3:
        data = rng.choice(
            (
                b"\xff\xd8\xff\xe0",
                b"GIF89a",
                b"RIFF0000WEBP",
                b"BM",
                b"II*\0",
                b"8BPS",
                b"<svg xmlns=''/>",
                b"%!PS-Adobe\n",
                b"%PDF-1.4",
            )
        ) + rng.randbytes(60)
    else:
        data = data[: rng.randrange(len(data))]
    path.write_bytes(data)
    return [_evaluate("pictures.jsonl")]


@generator("hearing", share=5)
def data_sets(rng: Random, room: Path) -> list[Command]:
    """Rows of jsonl: keys, types, places of media, encodings, very long lines; sets of one row and of none."""
    name = rng.choice(("sounds", "pictures", "texts"))
    path = room / f"{name}.jsonl"
    rows: list[Any] = [json.loads(line) for line in path.read_text().splitlines()]
    what = rng.randrange(6)
    if what == 0:
        number = rng.randrange(len(rows))
        rows[number] = damaged_value(rng, rows[number])
        path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    elif what == 1:
        key = rng.choice(sorted(rows[0]))
        place = str(room.parent / "outside" / "secret.json")
        odd = (
            *NAMES,
            "/dev/zero",
            "/dev/stdin",
            "pipe",
            ".",
            "model",
            place,
            "dog.wav",
            "http://localhost/x",
            {"bytes": "x"},
            {"path": "x"},
        )
        rng.choice(rows)[key] = rng.choice((*odd, odd_value(rng)))
        path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
        if rng.random() < 0.3:
            import os

            os.mkfifo(room / "pipe")
    elif what == 2:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    elif what == 3:
        path.write_bytes(b"\n".join(json_text(rng, row) for row in rows))
    elif what == 4:
        path.write_bytes(
            rng.choice(
                (
                    b"",
                    b"\n\n",
                    b"[]",
                    b"{}",
                    b"[{}]",
                    b"null",
                    json.dumps(rows).encode(),
                    path.read_text().encode("utf-16"),
                )
            )
        )
    else:
        text = rng.choice(
            ("x" * 10**6, "\x1b[31mred", "[bold]", "", " ", "\ud800", "a\u0301", "<script>alert(1)</script>")
        )
        rng.choice(rows)["text"] = text
        rows = rows[: rng.choice((1, 2, 6))]
        path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    if rng.random() < 0.2:
        other = path.with_suffix(rng.choice((".csv", ".json", ".txt", ".tsv", "")))
        path.rename(other)
        path = other
    return [_evaluate(path.name)]


@generator("hearing", share=3)
def parquet_files(rng: Random, room: Path) -> list[Command]:
    """Parquet: bytes damaged, other columns and types, media that are none."""
    import pyarrow
    from pyarrow import parquet

    name, key = rng.choice((("sounds", "audio"), ("pictures", "image")))
    path = room / f"{name}.parquet"
    what = rng.randrange(4)
    if what == 0:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    elif what == 1:
        data = path.read_bytes()
        path.write_bytes(data[:-400] + damaged_bytes(rng, data[-400:]))
    else:
        rows = parquet.read_table(path).to_pylist()
        held = rows[rng.randrange(len(rows))]
        held[key] = rng.choice(
            (
                None,
                {"bytes": None, "path": None},
                {"bytes": b"", "path": None},
                {"bytes": rng.randbytes(50), "path": "x.wav"},
                {"bytes": None, "path": "/etc/passwd"},
                {"bytes": damaged_bytes(rng, held[key]["bytes"]), "path": None},
            )
        )
        columns: dict[str, Any] = {key: [row[key] for row in rows], "text": [row["text"] for row in rows]}
        if what == 3:
            columns["text"] = rng.choice(
                ([1] * len(rows), [None] * len(rows), [["a"]] * len(rows), [b"\xff"] * len(rows))
            )
        parquet.write_table(pyarrow.table(columns), path)
    return [_evaluate(path.name)]
