"""JSON files: the only reader of them."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.links import check_link
from taskmerge.errors import CheckpointError
from taskmerge.opened import opened
from taskmerge.words.json_text import Shape, parse_json

LARGEST = 256 << 20


def read_json(path: Path, shape: type[Shape] | Any = Any, next_move: str | None = None, *, own: bool = False) -> Shape:
    """Return what a JSON file holds, checked against its declaration.

    Args:
        path: the file; a link may not leave its folder.  shape: see `taskmerge.words.json_text`.  next_move: what the
            user can do when the file is no good; default: get it again.  own: written by this program in a folder of
            its own: a link may lead anywhere.

    Raises:
        CheckpointError: for a file that cannot be read, is not a regular file, is larger than `LARGEST`, is not UTF-8,
            is not JSON, or is not of the shape.
    """
    move = next_move or "get or write the file again"
    if not own:
        check_link(path, path.parent)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError("is not a file", str(path), move)
        if found.st_size > LARGEST:
            raise CheckpointError(f"{found.st_size:,} bytes is too large for a JSON file", str(path), move)
        text = path.read_bytes()
        if not own:
            opened(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", str(path), move) from None
    read: Shape = parse_json(text, shape, str(path), move)
    return read
