"""Blocks of remote files in memory: fetched once for several readers, ahead of them, and within a budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

BLOCK = 4 << 20
"""Bytes fetched at a time."""
BUDGET = 256 << 20
"""Bytes of blocks kept, in addition to those that are being waited for."""
_FETCHING = 12

Key = tuple[object, int, int]


class Blocks:
    """The blocks of all remote files of a process, the latest used ones within `budget` bytes."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._bytes = 0
        self._threads: ThreadPoolExecutor | None = None

    def ask(self, key: Key, fetch: Callable[[], bytes]) -> Future[bytes]:
        """Return the block `(file, start, stop)`; `fetch` is called in a thread unless it is there or being loaded."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_FETCHING, "taskmerge-fetching")
            future = self._held.get(key)
            if future is not None and not (future.done() and future.exception() is not None):
                self._held.move_to_end(key)
                return future
            if future is not None:  # it failed: try again
                self._drop(key)
            future = self._held[key] = self._threads.submit(fetch)
            self._bytes += key[2] - key[1]
            for old in list(self._held):
                if self._bytes <= self.budget:
                    break
                if old != key and self._held[old].done():
                    self._drop(old)
        return future

    def holds(self, key: Key) -> bool:
        """Return whether a block is in memory or being loaded."""
        return key in self._held

    def _drop(self, key: Key) -> None:
        del self._held[key]
        self._bytes -= key[2] - key[1]


blocks = Blocks()
"""Those of this process."""
