"""A cache of pure functions of tensors: decompositions that several merges of the same models share.

Nothing is cached unless a store is open around the merge (`remembering`). Cached results have the same bits: their key
is a hash of every byte of the inputs.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class Remembered:
    """Results by key, at most `budget` bytes of them.

    What the current round or the one before it has not asked for gives way to what is new; when that makes no room, the
    new result is not kept. So a pass over more than fits finds what fitted, every time.

    Attributes:
        budget: most bytes of all results together.
        computed: how many results were computed, by the first part of their key.
        left_out: bytes of results of the latest round that found no room.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.computed: dict[str, int] = {}
        self.left_out = 0
        self._found: dict[Hashable, Any] = {}
        self._sizes: dict[Hashable, int] = {}
        self._asked: dict[Hashable, int] = {}
        self._round = 0
        self._held = 0
        self._lock = threading.RLock()

    def next_round(self) -> None:
        """Begin another merge: what neither this one nor the last asks for may go."""
        with self._lock:
            self._round += 1
            self.left_out = 0

    def get(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Return the result for `key`, computed if it is not stored. key[0]: kind of result."""
        with self._lock:
            if key in self._found:
                self._asked[key] = self._round
                return self._found[key]
        value = compute()
        with self._lock:
            self.computed[key[0]] = self.computed.get(key[0], 0) + 1
            self._keep(key, value)
        return value

    def _keep(self, key: Hashable, value: Any) -> None:
        size = size_of(value)
        if self._held + size > self.budget:
            for old in [old for old, asked in self._asked.items() if asked < self._round - 1]:
                self._held -= self._sizes.pop(old)
                del self._found[old], self._asked[old]
        if self._held + size > self.budget:
            self.left_out += size
            return
        self._found[key], self._sizes[key], self._asked[key] = value, size, self._round
        self._held += size


def size_of(value: Any) -> int:
    """Bytes of the tensors and arrays in a result."""
    if isinstance(value, tuple | list):
        return sum(size_of(part) for part in value)
    return int(getattr(value, "nbytes", 64))


_STORE: ContextVar[Remembered | None] = ContextVar("store", default=None)


@contextmanager
def remembering(store: Remembered | None) -> Iterator[None]:
    """Inside the block, functions marked `remembered` keep what they found in `store`; None: they keep nothing."""
    token = _STORE.set(store)
    try:
        yield
    finally:
        _STORE.reset(token)


def remembered(function: Function) -> Function:
    """Mark a pure function of tensors and plain values: its results are kept while `remembering`."""

    @functools.wraps(function)
    def asked(*arguments: Any, **options: Any) -> Any:
        store = _STORE.get()
        if store is None:
            return function(*arguments, **options)
        key = (function.__name__, *(_content(one) for one in arguments), *sorted(options.items()))
        return store.get(key, lambda: function(*arguments, **options))

    return asked  # type: ignore[return-value]


def _content(value: Any) -> Hashable:
    """A plain value itself; a tensor's shape, type and hash."""
    if isinstance(value, list | tuple):
        return tuple(_content(part) for part in value)
    if not hasattr(value, "data_ptr"):
        return value  # type: ignore[no-any-return]
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=20).digest()
    return tuple(value.shape), str(value.dtype), str(value.device), digest
