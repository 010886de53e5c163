"""Record of the files that a result was made from: readers report the files that they open, and a recorder keeps them.

No list of the inputs of a stage is written by hand: each file is reported by the code that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Heard = Callable[[tuple[Path, ...], bool], None]
_listeners: list[Heard] = []


def opened(*paths: Path, media: bool = False) -> None:
    """Report that files, or folders with their content, are read.

    Args:
        paths: what is opened.
        media: many and small (sounds, pictures): size and time of change tell whether one is the same.
    """
    for listener in _listeners:
        listener(paths, media)


@contextmanager
def recording(listener: Heard) -> Iterator[None]:
    """Hand every opened path to `listener`, as ``listener(paths, media)``, inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
