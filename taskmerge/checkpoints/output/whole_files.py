"""Small files of ours that are written anew while they are in use: there whole, in their old or their new form."""

from __future__ import annotations

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
