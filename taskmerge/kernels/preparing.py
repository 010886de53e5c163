"""Says that machine code is about to be made, which takes seconds and happens once on a computer."""

from __future__ import annotations

from collections.abc import Callable

_callback: Callable[[], None] | None = None
_announced = False


def on_prepare(callback: Callable[[], None] | None) -> None:
    """Have `callback` called before kernels are built in this process: at most once, and never where they are in the
    cache. None: nothing is called (the default)."""
    global _callback
    _callback = callback


def announce() -> None:
    """Call the listener, the first time."""
    global _announced
    if not _announced:
        _announced = True
        if _callback is not None:
            _callback()
