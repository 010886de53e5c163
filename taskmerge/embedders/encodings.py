"""Vectors that cost much and never change, kept on the disk: outputs of frozen encoders, embeddings of frozen texts.

A folder holds segments, each written by one process: `NAME.values`, the bytes of one entry after the other, and
`NAME.index`, one `RECORD` an entry, written after its bytes. What a killed run had finished is there for the next one.
Entries are read through the page cache, not mapped: a file that is cut off under a map kills the process.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.embedders.byte_files import ByteFile, TemporaryFolder
from taskmerge.words.places import cache_folder
from taskmerge.words.progress import tell
from taskmerge.words.sizes import show_bytes

if TYPE_CHECKING:
    from torch import Tensor

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("start", "<u8"), ("rows", "<u4"), ("width", "<u4"),
                   ("crc", "<u4"), ("segment", "<u4")])  # fmt: skip
"""Of an entry: its key in two halves, where its bytes start, its shape, a checksum of its bytes; which file, here."""
LIMIT = 50 << 30
"""Bytes on the disk, of all folders together, unless the user says otherwise."""
_MERGED = 1 << 16
_START, _ROWS, _WIDTH, _CRC, _SEGMENT = (
    (RECORD.names or ()).index(name) for name in ("start", "rows", "width", "crc", "segment")
)
_TOGETHER = 1 << 17
"""Bytes from which on entries that lie one behind the other are no longer read at once: each keeps all of them."""


@dataclass(frozen=True)
class Keeping:
    """The settings of the store of encodings.

    folder: None: `encodings` in the user's cache folder.  limit: bytes of all encodings there; 0 keeps none beyond the
    run, in a temporary folder.
    """

    folder: str | None = None
    limit: int = LIMIT

    def open(self, identity: str | None, dtype: Any) -> Encodings:
        """Open the encodings of one encoder.

        Args:
            identity: of everything that decides the values; None: it is not known, and nothing outlives the run.
            dtype: torch's, of the values.
        """
        root = Path(self.folder) if self.folder is not None else None
        if root is None and (home := cache_folder()) is not None:
            root = home / "encodings"
        if root is None or identity is None or self.limit == 0:
            return Encodings(None, dtype, LIMIT)
        # entries do not say their number format, so the folder does
        name = identity if dtype.itemsize == 4 else f"{identity}-{str(dtype).removeprefix('torch.')}"
        return Encodings(root / name, dtype, self.limit)


class Encodings:
    """Entries (rows, width) by key of 16 bytes. Several processes may write to one folder."""

    def __init__(self, folder: Path | None, dtype: Any, limit: int) -> None:
        """folder: None makes a temporary one, gone with this object."""
        self._temporary = TemporaryFolder("encodings") if folder is None else None
        self.folder = self._temporary.path if self._temporary else folder or Path()
        self.dtype, self.limit = dtype, limit
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self._segments: list[ByteFile] = []
        self._known = np.empty(0, RECORD)
        self._new: list[np.ndarray] = []
        self._recent: dict[bytes, np.ndarray] = {}
        self._values: ByteFile | None = None
        self._index: ByteFile | None = None
        self._own = self._written = 0
        self._used: int | None = None
        self._full = False
        self._open()

    def _open(self) -> None:
        """Takes in every segment's finished entries."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for index in sorted(self.folder.glob("*.index")):
                content = index.read_bytes()
                whole = len(content) // RECORD.itemsize * RECORD.itemsize
                found = np.frombuffer(content[:whole], dtype=RECORD).copy()
                found["segment"] = len(self._segments)
                self._segments.append(ByteFile(index.with_suffix(".values")))
                self._new.append(found)
                os.utime(index)
        except OSError as error:
            self._stop(f"cannot be read: {error.strerror}")
        self._merge()

    def _merge(self) -> None:
        """Sorts all entries by key."""
        known = np.concatenate([self._known, *self._new])
        self._known = known[np.argsort(known["high"], kind="stable")]
        self._high = np.ascontiguousarray(self._known["high"])
        self._new.clear()
        self._recent.clear()

    def __len__(self) -> int:
        """Entries, those with one key counted as often as they were written."""
        return len(self._known) + len(self._recent)

    def find(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Return the entry of each key; None if it is missing or its bytes are damaged."""
        records = self._records(keys)
        found: list[Tensor | None] = [None] * len(keys)
        for run in _runs(records, self.dtype.itemsize):
            for place, tensor in zip(run, self._read([records[place] for place in run]), strict=True):
                found[place] = tensor
        self.hits += sum(one is not None for one in found)
        self.misses += sum(one is None for one in found)
        return found

    def _records(self, keys: Sequence[bytes]) -> list[Any]:
        """The record of each key as a tuple; None where there is none."""
        halves = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        places = np.searchsorted(self._high, halves[:, 0])
        found: list[Any] = [None] * len(keys)
        if len(self._known):
            first = self._known[np.minimum(places, len(self._known) - 1)]
            behind = self._high[np.minimum(places + 1, len(self._known) - 1)]
            known = (first["high"] == halves[:, 0]) & (first["low"] == halves[:, 1])
            several = (behind == halves[:, 0]) & (places + 1 < len(self._known))
            found = [row if there else None for row, there in zip(first.tolist(), known.tolist(), strict=True)]
            for number in np.flatnonzero(several).tolist():
                record = self._at(int(places[number]), halves[number])
                found[number] = None if record is None else record.tolist()
        if self._recent:
            for number, key in enumerate(keys):
                if (record := self._recent.get(key)) is not None:
                    found[number] = record.tolist()
        return found

    def _at(self, place: int, key: np.ndarray) -> Any:
        """The record of a key, at `place` or behind it; the newest of several."""
        found = None
        while place < len(self._known) and self._high[place] == key[0]:
            if self._known["low"][place] == key[1]:
                found = self._known[place]
            place += 1
        return found

    def _read(self, run: Sequence[Any]) -> list[Tensor | None]:
        """The entries of records whose bytes are contiguous."""
        import torch

        counts = [record[_ROWS] * record[_WIDTH] for record in run]
        size = self.dtype.itemsize
        content = self._segments[run[0][_SEGMENT]].read(run[0][_START], sum(counts) * size)
        content += bytes(sum(counts) * size - len(content))  # cut off: what is missing has another checksum
        if not content:
            return [torch.empty(record[_ROWS], record[_WIDTH], dtype=self.dtype) for record in run]
        values = torch.frombuffer(content, dtype=self.dtype).split(counts)
        found: list[Tensor | None] = []
        start = 0
        view = memoryview(content)
        for record, own, count in zip(run, values, counts, strict=True):
            whole = zlib.crc32(view[start : start + count * size]) == record[_CRC]
            start += count * size
            found.append(own.view(record[_ROWS], record[_WIDTH]) if whole else None)
        return found

    def add(self, keys: Sequence[bytes], values: Sequence[Tensor]) -> None:
        """Keep entries (rows, width). Where the disk or the limit has no room, they are not kept, and that is told."""
        import torch

        contents = [
            value.detach().to("cpu", self.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for value in values
        ]
        if self._full or not self._has_room(sum(map(len, contents)) + len(keys) * RECORD.itemsize):
            return
        records = np.zeros(len(keys), RECORD)
        records["high"], records["low"] = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2).T
        records["rows"], records["width"] = np.array([tuple(value.shape) for value in values]).T
        records["crc"] = [zlib.crc32(content) for content in contents]
        ends = np.cumsum([len(content) for content in contents], dtype=np.uint64)
        records["start"] = self._written + np.concatenate([[0], ends[:-1]]).astype(np.uint64)
        with self._lock:
            try:
                self._write(b"".join(contents), records)
            except OSError as error:
                self._stop(f"cannot be written: {error.strerror}")
                return
            self._written += int(ends[-1])
            records["segment"] = self._own
            self._new.append(records)
            self._recent |= dict(zip(keys, records, strict=True))
            if len(self._recent) >= _MERGED:
                self._merge()

    def _write(self, values: bytes, records: np.ndarray) -> None:
        if self._values is None or self._index is None:
            place = self.folder / uuid.uuid4().hex[:16]
            self._values = ByteFile(place.with_suffix(".values"), write=True)
            self._index = ByteFile(place.with_suffix(".index"), write=True)
            self._segments.append(self._values)
            self._own = len(self._segments) - 1
        self._values.append(values)
        self._index.append(records.tobytes())

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more stay within the limit, once the least recently used segments are gone."""
        if self._temporary is not None:
            return True
        if self._used is None:
            self._used = sum(path.stat().st_size for path in self.folder.parent.glob("*/*.*") if path.is_file())
        if self._used + size > self.limit:
            self._make_room(size)
        if self._used + size > self.limit:
            what = f"the limit of {show_bytes(self.limit)} is reached"
            self._stop(f"{what}: further encodings are not stored and will be computed again when needed")
            return False
        self._used += size
        return True

    def _make_room(self, size: int) -> None:
        others = [path for path in self.folder.parent.glob("*/*.index") if path.parent != self.folder]
        for index in sorted(others, key=lambda path: path.stat().st_mtime):
            if (self._used or 0) + size <= self.limit:
                return
            for path in (index, index.with_suffix(".values")):
                assert self._used is not None
                self._used -= path.stat().st_size if path.exists() else 0
                path.unlink(missing_ok=True)

    def _stop(self, why: str) -> None:
        self._full = True
        tell(f"encodings in {self.folder}: {why}")


def _runs(records: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Places of records whose bytes are contiguous. size: of a number."""
    run: list[int] = []
    start, end, segment = 0, -1, -1
    for place, record in enumerate(records):
        if record is None:
            continue
        if run and (record[_START] != end or record[_SEGMENT] != segment or end - start >= _TOGETHER):
            yield run
            run = []
        start = start if run else record[_START]
        run.append(place)
        end, segment = record[_START] + record[_ROWS] * record[_WIDTH] * size, record[_SEGMENT]
    if run:
        yield run


def text_key(prompt: str | None, text: str) -> bytes:
    """Return the key of a text behind a prompt."""
    return hashlib.blake2b(f"{prompt!r}:{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
