"""The one pool of worker threads. Compiled kernels release the interpreter lock, so threads are cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from taskmerge.words.numerals import is_whole

Item = TypeVar("Item")
Result = TypeVar("Result")

_chosen: int | None = None
_pool: tuple[int, ThreadPoolExecutor] | None = None
_here = threading.local()


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Worker threads in use: as set, else TASKMERGE_THREADS, else every available core."""
    if _chosen is not None:
        return _chosen
    text = os.environ.get("TASKMERGE_THREADS", "")
    return max(1, int(text)) if is_whole(text) else available_cores()


def set_threads(count: int | None) -> None:
    """Use `count` worker threads from now on (None: the default). No result depends on it."""
    global _chosen
    _chosen = None if count is None else max(1, count)


def pool() -> ThreadPoolExecutor:
    """Return the pool, with `threads()` workers."""
    global _pool
    if _pool is None or _pool[0] != threads():
        if _pool is not None:
            _pool[1].shutdown(wait=False)
        _pool = (threads(), ThreadPoolExecutor(threads(), "taskmerge-kernel", _mark_worker))
    return _pool[1]


def _forget_pool() -> None:
    """A forked child has the parent's pool, but none of its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _mark_worker() -> None:
    """A worker that spreads work runs it itself: waiting for its own pool could wait for ever."""
    _here.worker = True


def map_on_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return `[function(item) for item in items]` from the pool; the first error is raised when all have ended."""
    todo = list(items)
    if threads() == 1 or len(todo) < 2 or getattr(_here, "worker", False):
        return [function(item) for item in todo]
    futures: list[Future[Result]] = [pool().submit(function, item) for item in todo]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
