"""Errors of the system (no space, a broken disk, no rights) in plain words, with the next move."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from taskmerge.errors import OutputError, TaskmergeError, first_line

AGAIN = "then run the same command again: it continues from the finished files"
_FULL = f"free disk space or inodes (`df -h` and `df -i` show which), {AGAIN}"
_RIGHTS = "change its permissions, or choose another place"
MOVES: dict[int, str] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: f"your quota is used up: free space, {AGAIN}",
    errno.EFBIG: "the file system or `ulimit -f` does not allow such a large file: choose another place",
    errno.EIO: f"the disk reports an error (`dmesg` shows details): repair it or choose another, {AGAIN}",
    errno.EROFS: "this place is read-only: choose another",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: "check the path, and that the current folder still exists",
    errno.ENOTDIR: "part of the path is a file: check the path",
    errno.EISDIR: "a folder is in the way of a file: move it away",
    errno.EEXIST: "something is in the way: move it away",
    errno.ENOTEMPTY: "something is in the way: move it away",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "a link leads back to itself: check the path",
    errno.EBUSY: "another program uses it (or it is a mount point): choose another place",
    errno.EXDEV: "choose a place on the same disk",
    errno.EMFILE: "allow more open files: `ulimit -n 65536`",
    errno.ENFILE: "the system has too many open files: close some, then run the same command again",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
    errno.ESTALE: f"the network disk has lost the file: mount it again, {AGAIN}",
}
UNTOLD = "the disk is full, or reports an error"
"""What is said of a failure to write whose number a library has lost."""
_TORCH_WRITES = re.compile(r"PytorchStreamWriter failed|inline_container\.cc|iostream error")
_NUMBER = re.compile(r"\[Errno ([0-9]{1,3})\]|\bcode: ([0-9]{1,3})\b|\bos error ([0-9]{1,3})\b")


def number_of(error: BaseException | None) -> int | None:
    """Return the errno behind an error of the system or of a library that wraps one; None when there is none."""
    for _ in range(10):
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if isinstance(error, TaskmergeError):  # says itself what it means
            return None
        if not isinstance(error, OSError | ValueError | KeyError) and (found := _NUMBER.search(str(error))):
            return int(found[1] or found[2] or found[3])
        error = error.__cause__ or error.__context__
    return None


def sentence(error: OSError) -> str:
    """Return what an error of the system says, without its number and path: "No space left on device"."""
    return error.strerror or first_line(error)


def as_output_error(
    error: BaseException, path: str | bytes | os.PathLike[str] | None = None, what: str = ""
) -> OutputError | None:
    """Return what an error means for the user; None when no refusal of the system is behind it.

    Args:
        error: what was raised, by the system or by a library that writes.  path: what was written; default: the path
            that the error itself names.  what: what could not be done: "cannot be written".
    """
    number = number_of(error)
    if number is None and not (isinstance(error, RuntimeError) and _TORCH_WRITES.search(str(error))):
        return None
    said, move = (UNTOLD, _FULL) if number is None else (os.strerror(number), MOVES.get(number))
    if path is None:
        named = getattr(error, "filename2", None) or getattr(error, "filename", None)
        path = named if isinstance(named, str | bytes) else None
    place = None if path is None else os.fsdecode(path)
    return OutputError(f"{what}: {said}" if what else said, place, move or AGAIN.removeprefix("then "))


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Whatever the system refuses while `path` is written inside the block becomes an OutputError that names it.

    Raises:
        OutputError: for an OSError, and for the error of a library that has one behind it.
    """
    try:
        yield
    except TaskmergeError:
        raise
    except Exception as error:
        if told := as_output_error(error, path, "cannot be written"):
            raise told from error
        raise
