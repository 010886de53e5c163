"""Files that stay open as long as a piece of them is needed, and temporary folders that go with what needs them."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path


class ByteFile:
    """A file that is read in pieces, or written at its end, by several threads. Closed when nothing refers to it."""

    def __init__(self, path: Path, write: bool = False) -> None:
        """write: make a new one. Raises OSError."""
        flags = (os.O_RDWR | os.O_CREAT | os.O_EXCL) if write else os.O_RDONLY
        self._number = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._number)

    def read(self, start: int, count: int) -> bytearray:
        """Return the bytes [start, start + count), fewer where the file ends."""
        found = bytearray()
        with self._lock:
            os.lseek(self._number, start, os.SEEK_SET)
            while len(found) < count and (piece := os.read(self._number, count - len(found))):
                found += piece
        return found

    def append(self, content: bytes) -> None:
        """Write bytes at the end."""
        view = memoryview(content)
        with self._lock:
            os.lseek(self._number, 0, os.SEEK_END)
            while len(view):
                view = view[os.write(self._number, view) :]


class TemporaryFolder:
    """A folder that is removed when nothing refers to this object any more."""

    def __init__(self, name: str) -> None:
        """name: what its name begins with."""
        self.path = Path(tempfile.mkdtemp(prefix=f"taskmerge-{name}-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
