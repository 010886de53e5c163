"""One weight file, written in order: hashed in one thread, sent to the disk in another, past the page cache.

The page cache would only hold the output until it is written back, and copying into it costs more processor time than
merging does; so whole aligned buffers go straight to the disk (O_DIRECT), where the file system allows it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.layout import ShardLayout
from taskmerge.errors import OutputError

_QUEUED_BUFFERS = 4
_BUFFER = 8 << 20
_BATCH = 1 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)


class ShardWriter:
    """Takes the bytes of one file in order; nothing is sure before `finish`. Raises OutputError if the disk refuses."""

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self._expected = layout.size
        self._path = path
        self._taken = self._waiting_bytes = 0
        self._waiting: list[np.ndarray] = []
        self._hash = hashlib.sha256()
        try:
            self._file = _StraightFile(path, layout.size)
        except OSError as error:
            raise self._failed(f"no room for {layout.size:,} bytes: {error.strerror}") from None
        self._consumers = [_Consumer(self._hash_more), _Consumer(self._file.append)]
        self.write(np.frombuffer(layout.header, dtype=np.uint8))

    def write(self, data: np.ndarray) -> None:
        """Appends the bytes of `data`, which must not change afterwards."""
        entries = data.view(np.uint8)
        self._taken += entries.size
        self._waiting.append(entries)
        self._waiting_bytes += entries.size
        if self._waiting_bytes >= _BATCH:
            self._hand_over()

    def _hand_over(self) -> None:
        """Little tensors go to the threads many at a time: waking a thread costs more than writing one."""
        for consumer in self._consumers:
            if consumer.failure is not None:
                raise self._failed(f"writing failed: {consumer.failure}")
            consumer.queue.put(self._waiting)
        self._waiting, self._waiting_bytes = [], 0

    def _hash_more(self, data: np.ndarray) -> None:
        self._hash.update(data.data)

    def _failed(self, what: str) -> OutputError:
        return OutputError(what, str(self._path), "free space, then run it again: it goes on from its finished files")

    def finish(self) -> str:
        """Waits for the last byte to be on disk; the file's sha256."""
        self._hand_over()
        failures = [consumer.stop() for consumer in self._consumers]
        try:
            if any(failures):
                raise self._failed(f"writing failed: {next(filter(None, failures))}")
            if self._taken != self._expected:
                raise self._failed(f"wrote {self._taken:,} bytes of {self._expected:,}")
            self._file.finish()
        except OSError as error:
            raise self._failed(f"writing failed: {error}") from None
        return self._hash.hexdigest()

    def close(self) -> None:
        """Ends the threads and closes the file."""
        for consumer in self._consumers:
            consumer.stop()
        self._file.close()


class _Consumer:
    """A thread that calls a function with everything put into its queue, until the first failure."""

    def __init__(self, function: Callable[[np.ndarray], None]) -> None:
        self.queue: queue.Queue[list[np.ndarray] | None] = queue.Queue(_QUEUED_BUFFERS)
        self.failure: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (data := self.queue.get()) is not None:
            if self.failure is None:
                try:
                    for part in data:
                        self._function(part)
                except BaseException as error:
                    self.failure = error

    def stop(self) -> BaseException | None:
        """Lets it work off what it has; what went wrong."""
        if self._thread.is_alive():
            self.queue.put(None)
            self._thread.join()
        return self.failure


class _StraightFile:
    """A new file of known size, appended to in large aligned buffers. Raises OSError."""

    def __init__(self, path: Path, size: int) -> None:
        self._buffer = np.frombuffer(mmap.mmap(-1, _BUFFER), np.uint8)
        self._filled = self._written = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._file = os.open(path, flags | _DIRECT, 0o666)
        except OSError:  # a file system without O_DIRECT
            self._file = os.open(path, flags, 0o666)
        try:
            if size:
                os.posix_fallocate(self._file, 0, size)
        except OSError:
            self.close()
            raise

    def append(self, data: np.ndarray) -> None:
        """Takes bytes, uint8; they are free again afterwards."""
        while data.size:
            count = min(data.size, _BUFFER - self._filled)
            self._buffer[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == _BUFFER:
                self._flush()

    def _flush(self) -> None:
        view = self._buffer[: self._filled].data
        while view:
            try:
                count = os.pwrite(self._file, view, self._written)
            except OSError:
                if not self._indirect():
                    raise
                continue
            self._written += count
            view = view[count:]
            if count % mmap.PAGESIZE and view:
                self._indirect()
        self._filled = 0

    def _indirect(self) -> bool:
        """Goes on through the page cache; False if it already did."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        if not flags & _DIRECT:
            return False
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
        return True

    def finish(self) -> None:
        """Writes the rest and waits until all of it is on disk."""
        self._indirect()  # the last, odd bytes
        self._flush()
        os.fsync(self._file)

    def close(self) -> None:
        """Lets go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
