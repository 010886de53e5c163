"""Working ahead: results in order, made by several threads, a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order; up to `ahead` results are computed in advance.

    What a call raises is raised in its turn; what was not begun by then is not.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(ahead, "taskmerge-ahead") as threads:
        try:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
