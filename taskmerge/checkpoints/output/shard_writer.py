"""One weight file, written in order: hashed in one thread, sent to the disk in another, past the page cache.

The page cache would only hold the output until it is written back, and copying into it costs more processor time than
merging does; so whole aligned buffers go straight to the disk (O_DIRECT), where the file system allows it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.errors import OutputError, TaskmergeError
from taskmerge.words.places import StoreUri
from taskmerge.words.system_errors import as_output_error

BUFFER = 8 << 20
BUFFERS = 7
AGAIN = "run the same command again: it continues from its finished files"
_DIRECT = getattr(os, "O_DIRECT", 0)


class Sink(Protocol):
    """The destination of the bytes of one new file: they come in order, and the file is complete or absent."""

    def append(self, data: np.ndarray) -> None:
        """Take bytes, uint8; they are free again afterwards."""
        ...

    def finish(self) -> None:
        """Return once all of it is kept. Raises OSError or OutputError."""
        ...

    def close(self) -> None:
        """Let go of the file; of one that is not finished nothing is kept."""
        ...


class ShardWriter:
    """A writer of one file, in order; nothing is certain before `finish`. Raises OutputError if the disk refuses.

    Either `write` is given everything after the header, or buffers are had from `take`, filled by any thread and
    handed over by `put` in the order of the file, header included. size: bytes of one buffer, a multiple of the page.
    file: what takes the bytes; left out: a new file of this disk.
    """

    def __init__(
        self, path: Path | StoreUri, layout: ShardLayout, size: int = BUFFER, file: Sink | None = None
    ) -> None:
        self._path, self._layout, self._size = path, layout, size
        self._taken = self._filled = 0
        self._filling: np.ndarray | None = None
        self._hash = hashlib.sha256()
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for buffer in _aligned(BUFFERS, size):
            self._free.put(buffer)
        try:
            self._file: Sink = _StraightFile(Path(str(path)), layout.size) if file is None else file
        except OSError as error:
            raise self._failed(error, f"no disk space for {layout.size:,} bytes") from None
        self._writing = _Consumer(self._write_out)
        self._hashing = _Consumer(self._hash_more)

    def take(self) -> np.ndarray:
        """Return a buffer of `size` bytes, uint8, to be filled and passed to `put`; wait until one is free."""
        return self._free.get()

    def put(self, buffer: np.ndarray, count: int) -> None:
        """Append the first `count` bytes of a buffer; only the last buffer of the file may be partly filled."""
        for consumer in (self._hashing, self._writing):
            if consumer.failure is not None:
                raise self._failed(consumer.failure)
        self._taken += count
        self._hashing.queue.put(buffer[:count])

    def write(self, data: np.ndarray) -> None:
        """Append the bytes of `data`; the header comes before the first."""
        if not self._taken and self._filling is None:
            self._copy(np.frombuffer(self._layout.header, np.uint8))
        self._copy(data.view(np.uint8))

    def _copy(self, entries: np.ndarray) -> None:
        while entries.size:
            if self._filling is None:
                self._filling, self._filled = self.take(), 0
            count = min(entries.size, self._size - self._filled)
            self._filling[self._filled : self._filled + count] = entries[:count]
            self._filled += count
            entries = entries[count:]
            if self._filled == self._size:
                self.put(self._filling, self._size)
                self._filling = None

    def _hash_more(self, data: np.ndarray) -> None:
        try:
            self._hash.update(data.data)
        finally:
            self._writing.queue.put(data)

    def _write_out(self, data: np.ndarray) -> None:
        try:
            self._file.append(data)
        finally:
            self._free.put(data.base)  # type: ignore[arg-type]

    def _failed(self, error: BaseException, what: str = "writing failed") -> OutputError:
        if isinstance(error, TaskmergeError):  # says itself what it means
            return OutputError(error.problems)
        return as_output_error(error, str(self._path), what) or OutputError(f"{what}: {error}", str(self._path), AGAIN)

    def finish(self) -> str:
        """Wait until the last byte is on disk; return the file's sha256."""
        if self._filling is not None:
            self.put(self._filling, self._filled)
        failures = [self._hashing.stop(), self._writing.stop()]
        try:
            for failure in filter(None, failures):
                raise self._failed(failure)
            if self._taken != self._layout.size:
                what = f"wrote {self._taken:,} bytes of {self._layout.size:,}"
                raise OutputError(what, str(self._path), AGAIN)
            self._file.finish()
        except OSError as error:
            raise self._failed(error) from None
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the threads, close the file, and free the buffers."""
        self._hashing.stop()
        self._writing.stop()
        self._file.close()
        self._filling = None
        self._free = queue.SimpleQueue()  # threads and writer refer to each other: else they stay until that is noticed


def _aligned(count: int, size: int) -> list[np.ndarray]:
    """Buffers on page boundaries, as O_DIRECT wants them. Each a `base` of its own, to be recognised in its slices."""
    regions = [mmap.mmap(-1, size) for _ in range(count)]
    if hasattr(mmap, "MADV_HUGEPAGE"):
        for region in regions:
            with contextlib.suppress(OSError):
                region.madvise(mmap.MADV_HUGEPAGE)
    return [np.frombuffer(region, np.uint8) for region in regions]


class _Consumer:
    """A thread that calls a function with everything put into its queue, until the first failure."""

    def __init__(self, function: Callable[[np.ndarray], None]) -> None:
        self.queue: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (data := self.queue.get()) is not None:
            try:
                self._function(data)
            except BaseException as error:
                self.failure = self.failure or error

    def stop(self) -> BaseException | None:
        """Lets it work off what it has; what went wrong."""
        if self._thread.is_alive():
            self.queue.put(None)
            self._thread.join()
        return self.failure


def _reserve(file: int, size: int) -> None:
    """Sets aside room for the whole file. macOS has no posix_fallocate: there the file is only made that long."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


class _StraightFile:
    """A new file of known size, appended to in large aligned buffers. Raises OSError."""

    def __init__(self, path: Path, size: int) -> None:
        self._written = 0
        self._failed = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._file = os.open(path, flags | _DIRECT, 0o666)
        except OSError:  # a file system without O_DIRECT
            self._file = os.open(path, flags, 0o666)
        try:
            if size:
                _reserve(self._file, size)
        except OSError:
            self.close()
            raise

    def append(self, data: np.ndarray) -> None:
        """Takes bytes, uint8; they are free again afterwards. Nothing is written after a failure."""
        if self._failed:
            return
        self._failed = True
        view = data.data
        while view:
            whole = len(view) // mmap.PAGESIZE * mmap.PAGESIZE
            if not whole:
                self._indirect()  # the last, odd bytes
            try:
                count = os.pwrite(self._file, view[: whole or None], self._written)
            except OSError:
                if not self._indirect():
                    raise
                continue
            self._written += count
            view = view[count:]
            if count % mmap.PAGESIZE and view:
                self._indirect()
        self._failed = False

    def _indirect(self) -> bool:
        """Continues through the page cache; False if it already did."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        if not flags & _DIRECT:
            return False
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
        return True

    def finish(self) -> None:
        """Waits until all of it is on disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Lets go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
