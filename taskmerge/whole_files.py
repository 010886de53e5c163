"""Files of ours that are rewritten while they are in use: always complete, in their old or their new form.

The new version is first written next to the file, under one of two kinds of name: one that is known beforehand, for
files that a single process writes, or one of this process, for files that several may write at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path, unfinished: Path | None = None) -> Iterator[Path]:
    """Give a place to write to, which becomes `path` in one rename when the block ends, and is removed when it fails.

    Args:
        path: what is written or replaced.  unfinished: the place; by default one of this process, and what killed
            processes of this machine left in theirs is removed.
    """
    if unfinished is None:
        _remove_left(path)
        unfinished = of_this_process(path)
    unfinished.unlink(missing_ok=True)  # a killed run's; or a link, which is not written through
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Put a file that no other process writes in its place. Raises OSError, and leaves nothing then."""
    with written_whole(path, unfinished_of(path)) as unfinished:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def unfinished_of(path: Path) -> Path:
    """Return the path of the unfinished new version of a file that no other process writes."""
    return path.with_name(f".{path.name}.new")


def of_this_process(path: Path) -> Path:
    """Return this process's path for the unfinished new version of a file that others may write at the same time."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _remove_left(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*"):
        number = left.name.rpartition(".")[2]
        if number.isascii() and number.isdigit() and not _lives(int(number)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
