"""The safetensors header: 8 bytes little-endian length, JSON, then tensors back to back. Strict both ways.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, clipped
from taskmerge.numbers.dtypes import DTYPES
from taskmerge.words.json_text import JsonError, load

_MOST = 2**63
_KEYS = {"dtype", "shape", "data_offsets"}
LONGEST_HEADER = 100_000_000  # the limit of the safetensors library itself


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its header entry and the place of its bytes, from the start of the file."""

    info: TensorInfo
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """entries: in the order of their bytes. metadata: the free text block. size: bytes before the first tensor."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    size: int


def read_header(file: BinaryIO, file_size: int, place: str) -> Header:
    """Read and check a header; `place` is the file's name in messages.

    Raises CheckpointError for anything the format forbids: a length beyond the file, broken JSON, duplicate names,
    unknown dtypes, shapes that do not fit their bytes, ranges that overlap, leave a hole or pass the end.
    """
    prefix = file.read(8)
    if len(prefix) < 8:
        raise broken(place, f"the file has {len(prefix)} bytes; a safetensors file has at least 8")
    (length,) = struct.unpack("<Q", prefix)
    if length > LONGEST_HEADER:
        raise broken(place, f"the header claims {length:,} bytes; the format allows {LONGEST_HEADER:,}")
    if 8 + length > file_size:
        raise broken(place, f"the header claims {length:,} bytes, but the file has only {file_size:,}")
    return parse_header(file.read(length), 8 + length, file_size, place)


def parse_header(text: bytes, size: int, file_size: int, place: str) -> Header:
    """Check header JSON `text`; `size` is the offset of the first tensor byte. See `read_header`."""
    table = _load_json(text, place)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken(place, "__metadata__ is not a table of text")
    entries = [_entry(name, row, size, file_size, place) for name, row in table.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    position = size
    for entry in entries:
        if entry.start != position:
            trouble = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise broken(place, f"tensor {entry.info.name!r} {trouble}")
        position = entry.stop
    if position != file_size:
        raise broken(place, f"the tensors end at byte {position:,}, but the file ends at byte {file_size:,}")
    return Header(tuple(entries), metadata, size)


def broken(place: str, what: str) -> CheckpointError:
    """Return the error for a file that breaks the format."""
    return CheckpointError(
        f"not a valid safetensors file: {what}", place, "download or save it again; nothing was read from it"
    )


def _load_json(text: bytes, place: str) -> dict[str, Any]:
    try:
        table = load(text)
    except JsonError as error:
        raise broken(place, f"its header is not JSON: {str(error).removeprefix('not valid JSON: ')}") from None
    if not isinstance(table, dict):
        raise broken(place, "its header is not a JSON object")
    return table


def _entry(name: str, row: Any, size: int, file_size: int, place: str) -> Entry:
    if not isinstance(row, dict) or row.keys() != _KEYS:
        raise broken(place, f"tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    known = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if known is None:
        raise broken(place, f"tensor {name!r} has the unknown dtype {clipped(repr(dtype), 200)}")
    if not _naturals(shape):
        raise broken(place, f"tensor {name!r} has the invalid shape {clipped(repr(shape), 200)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1] or size + offsets[1] > file_size:
        raise broken(
            place,
            f"tensor {name!r} has the invalid offsets {clipped(repr(offsets), 200)} in {file_size - size:,} "
            f"bytes of data",
        )
    needed = known.bytes_of(shape)
    if needed != offsets[1] - offsets[0]:
        raise broken(
            place,
            f"tensor {name!r}: {dtype} {shape} needs {needed:,} bytes, its offsets give {offsets[1] - offsets[0]:,}",
        )
    return Entry(TensorInfo(name, dtype, tuple(shape)), size + offsets[0], size + offsets[1])


def _naturals(values: Any) -> bool:
    if not isinstance(values, list) or len(values) > 64:
        return False
    for value in values:  # noqa: SIM110 (a generator takes twice the time, and models have 100,000 tensors)
        if type(value) is not int or not 0 <= value < _MOST:
            return False
    return True


def read_file_header(path: Path) -> Header:
    """Return the header of the file at `path`."""
    try:
        with path.open("rb") as file:
            return read_header(file, path.stat().st_size, str(path))
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", str(path), "check that the file exists and that you may read it"
        ) from None


def build_header(tensors: Iterable[TensorInfo], metadata: dict[str, str]) -> tuple[bytes, tuple[Entry, ...]]:
    """Return the exact first bytes of a file with `tensors` in the given order, and the offset of each tensor.

    The JSON is padded with spaces to a multiple of 8, so that the data starts aligned.
    """
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    rows: list[tuple[TensorInfo, int, int]] = []
    for info in tensors:
        stop = position + info.nbytes
        table[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [position, stop]}
        rows.append((info, position, stop))
        position = stop
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    size = 8 + len(text)
    entries = tuple(Entry(info, size + start, size + stop) for info, start, stop in rows)
    return struct.pack("<Q", len(text)) + text, entries
