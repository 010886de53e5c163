"""One safetensors file in a store: its header at once, its tensors as ranges of bytes when they are read."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import LONGEST_HEADER, Entry, broken, parse_header
from taskmerge.checkpoints.formats.held import used
from taskmerge.checkpoints.stores.blocks import BLOCK, blocks
from taskmerge.checkpoints.stores.cached import cached
from taskmerge.checkpoints.stores.interface import Stat, Store, reading
from taskmerge.errors import CheckpointError

_FIRST = 1 << 16
_SMALL = 1 << 18
"""Tensors of fewer bytes are fetched with their neighbours."""
_GROUP = 1 << 20
_GLANCE = 1 << 13
"""Fewer bytes of a large tensor are a sample: no more than they is fetched."""


class RemoteFile(WeightFile):
    """A safetensors file in a store, as `WeightFile`. place: a file of this disk that stands for it, without bytes.

    store, key, stat: its place, and the expected version: a read of another one fails.
    """

    def __init__(self, name: str, place: Path, store: Store, key: str, stat: Stat) -> None:
        self._store, self._key, self._stat, self._place = store, key, stat, place
        self.uri = f"{store.uri}/{key}"
        entries, self.metadata = self._header()
        super().__init__(name, entries={entry.info.name: entry for entry in entries})
        self._cuts = list(_cut(entries))
        self._starts = [start for start, _ in self._cuts]

    @property
    def path(self) -> Path:
        """A file of this disk that stands for it, for messages and to tell it from others."""
        return self._place

    @property
    def local(self) -> bool:
        """False: reading needs the network."""
        return False

    @property
    def origin(self) -> str:
        """See `WeightFile.origin`: its uri and version."""
        return f"{self.uri}#{self._stat.state}"

    @property
    def state(self) -> str:
        """See `WeightFile.state`."""
        return f"etag:{self._stat.state}"

    def check(self) -> None:
        """See `WeightFile.check`; a store that refuses to read another version has said so where it was read."""
        if not self._store.conditional:
            self.check_again()

    def check_again(self) -> None:
        """Ask the store whether it still has this version. Raises CheckpointError."""
        now = reading(self.uri, lambda: self._store.stat(self._key))
        if now is None or now.state != self._stat.state:
            what = "was removed" if now is None else "was written to"
            raise CheckpointError(
                f"{what} while it was being read", self.uri, "run it again when no other program writes to it"
            )

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """See `WeightFile.read`; the bytes are fetched."""
        used(self)
        entry = self.entries[name]
        storage = entry.info.format.storage
        if storage is None:
            return np.frombuffer(self.span(entry.start, entry.stop), np.uint8)
        size = storage.itemsize
        first = entry.start + start * size
        last = entry.stop if stop is None else min(entry.start + stop * size, entry.stop)
        found = np.frombuffer(self.span(first, last), np.uint8)
        return (found if found.ctypes.data % size == 0 else found.copy()).view(storage)

    def view(self, name: str) -> None:
        """See `WeightFile.view`: there is none."""
        return None

    def release(self, name: str, start: int, stop: int) -> None:
        """See `WeightFile.release`: blocks go when others come."""

    def mapped(self) -> np.ndarray:
        """Raise CheckpointError: a file in a store cannot be mapped."""
        raise CheckpointError("is in a store and cannot be mapped into memory", self.uri, "copy it to this disk")

    def span(self, start: int, stop: int) -> bytes | memoryview:
        """Return bytes [start, stop) of the file; the next block of the same tensor is fetched in advance."""
        if stop <= start:
            return b""
        first, last = bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1) - 1
        low, high = self._cuts[first]
        if first == last and stop - start < _GLANCE < high - low == BLOCK and not blocks.holds((self, low, high)):
            return self._fetch(start, stop)
        asked = [blocks.ask((self, *cut), partial(self._fetch, *cut)) for cut in self._cuts[first : last + 1]]
        after = self._cuts[last + 1 : last + 2]
        if high - low == BLOCK and after and after[0][1] - after[0][0] == BLOCK:
            blocks.ask((self, *after[0]), partial(self._fetch, *after[0]))
        if len(asked) == 1:
            return memoryview(asked[0].result())[start - low : stop - low]
        whole = b"".join(future.result() for future in asked)
        return memoryview(whole)[start - low : stop - low]

    def everything(self) -> Iterator[bytes]:
        """Yield the bytes of the complete file, in order, as the store has it now."""
        for start in range(0, self._stat.size, 2 * BLOCK):
            yield self._ask(start, min(start + 2 * BLOCK, self._stat.size))

    def _fetch(self, start: int, stop: int) -> bytes:
        if not self._store.conditional:  # what names a version there may be size and time: too little to keep bytes by
            return self._ask(start, stop)
        key = self.uri, self._stat.state, self._stat.size, start, stop
        return cached(key, stop - start, partial(self._ask, start, stop))

    def _ask(self, start: int, stop: int) -> bytes:
        return reading(self.uri, lambda: self._store.read(self._key, start, stop, self._stat.state))

    def _header(self) -> tuple[tuple[Entry, ...], dict[str, str]]:
        size = self._stat.size
        head = self._fetch(0, min(_FIRST, size))
        if len(head) < 8:
            raise broken(self.uri, f"the file has {len(head)} bytes; a safetensors file has at least 8")
        (length,) = struct.unpack("<Q", head[:8])
        if length > LONGEST_HEADER or 8 + length > size:
            raise broken(self.uri, f"the header claims {length:,} bytes; the file has {size:,}")
        text = head[8 : 8 + length]
        text += self._fetch(8 + len(text), 8 + length) if len(text) < length else b""
        header = parse_header(text, 8 + length, size, self.uri)
        return header.entries, header.metadata


def _cut(entries: Iterable[Entry]) -> Iterator[tuple[int, int]]:
    """How a file is fetched: large tensors in blocks of their own, small ones together with their neighbours."""
    start = stop = -1
    for entry in entries:
        if entry.stop == entry.start:
            continue
        small = entry.stop - entry.start < _SMALL
        if start >= 0 and (not small or entry.stop - start > _GROUP):
            yield start, stop
            start = -1
        if small:
            start, stop = start if start >= 0 else entry.start, entry.stop
        else:
            for first in range(entry.start, entry.stop, BLOCK):
                yield first, min(first + BLOCK, entry.stop)
    if start >= 0:
        yield start, stop
