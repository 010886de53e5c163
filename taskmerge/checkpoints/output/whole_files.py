"""Small files of ours that are written anew while they are in use: there whole, in their old or their new form."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Put a file in its place in one rename. Raises OSError, and leaves nothing then."""
    unfinished = unfinished_of(path)
    unfinished.unlink(missing_ok=True)  # a killed run's; or a link, which is not written through
    try:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def unfinished_of(path: Path) -> Path:
    """Where the next form of a file is written."""
    return path.with_name(f".{path.name}.new")


def scratch_of(path: Path) -> Path:
    """A file of this process beside `path`, to be renamed. What killed processes left there is removed."""
    for left in path.parent.glob(f".{path.name}.*"):
        number = left.name.rpartition(".")[2]
        if number.isascii() and number.isdigit() and not _lives(int(number)):
            left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
