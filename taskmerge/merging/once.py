"""Results that several threads want and one computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Once(Generic[Key, Result]):
    """A cache that computes the result for each key once.

    Threads that ask during the computation wait for it; a failure is raised in all of them. most: maximum number of
    results that are kept, the latest; None for all.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._found: dict[Key, Future[Result]] = {}

    def get(self, key: Key, compute: Callable[[], Result]) -> Result:
        """Return the result for `key`; the first caller computes it."""
        with self._lock:
            future = self._found.get(key)
            mine = future is None
            if future is None:
                future = self._found[key] = Future()
                if self._most is not None and len(self._found) > self._most:
                    del self._found[next(iter(self._found))]
        if mine:
            try:
                future.set_result(compute())
            except BaseException as error:
                future.set_exception(error)
        return future.result()
