"""Input files that must stay as they are, from the reading of their headers to the end of what is made from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskmerge.errors import CheckpointError

_HEAD = 1 << 16
_READ_AGAIN = "run it again when no other program writes to it"


@dataclass(frozen=True)
class State:
    """The state of a file at one time.

    place: device, inode. content: size, time of change of the content, a hash of its head. touched: time of the last
    change of any kind; rights: rights, owner and links, whose changes count too.
    """

    place: tuple[int, int]
    content: tuple[int, int, str]
    touched: int
    rights: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path) -> State:
        """Return the state of a file; anything but a file is not opened. Raises OSError."""
        found = path.stat()
        head = ""
        if os.path.isfile(path):  # noqa: PTH113
            with path.open("rb") as file:
                head = hashlib.sha256(file.read(_HEAD)).hexdigest()
        return cls(
            (found.st_dev, found.st_ino),
            (found.st_size, found.st_mtime_ns, head),
            found.st_ctime_ns,
            (found.st_mode, found.st_uid, found.st_gid, found.st_nlink),
        )

    def is_same(self, now: State) -> bool:
        """Return whether nothing was written in the meantime.

        A new link or other rights touch a file as well; if these are equal, a file that was touched was written, and
        its time was set back.
        """
        unwritten = (self.place, self.content) == (now.place, now.content)
        return unwritten and (self.touched == now.touched or self.rights != now.rights)


@dataclass
class Held:
    """One file on this disk, and its state when its header was read."""

    path: Path
    state: State | None

    @classmethod
    def of(cls, path: Path) -> Held:
        """Return the present state of a file; its reader reports a file that cannot be read."""
        try:
            return cls(path, State.of(path))
        except OSError:
            return cls(path, None)

    def check(self, torn: bool = False) -> None:
        """Raise CheckpointError when it is no longer as it was. torn: bytes of it could not be had."""
        try:
            now = State.of(self.path)
        except OSError as error:
            raise CheckpointError(f"can no longer be read: {error.strerror}", str(self.path), _READ_AGAIN) from None
        if self.state is None or (self.state.is_same(now) and not torn):
            return
        before, size = self.state.content[0], now.content[0]
        if size < before:
            what = f"was truncated while it was being read: {size:,} bytes are left of {before:,}"
        elif self.state.is_same(now):
            what = "could not be read completely: its disk or its network failed"
        elif self.state.place != now.place:
            what = "was replaced by another file while it was being read"
        else:
            what = "was written to while it was being read"
        raise CheckpointError(what, str(self.path), _READ_AGAIN)


class Checked:
    """An input that can check whether it is unchanged."""

    def check(self) -> None:
        """Raise CheckpointError when it is not."""
        raise NotImplementedError


class Used(dict[Checked, None]):
    """The files that were read, in order."""

    def check(self) -> None:
        """Raise CheckpointError for one that is no longer as it was."""
        for file in list(self):
            file.check()


_using: list[Used] = []


def used(file: Checked) -> None:
    """Say that bytes of a file are being read, for whatever is being made."""
    for files in _using:
        files[file] = None


@contextmanager
def using() -> Iterator[Used]:
    """Collect the files that are read inside the block, by any thread."""
    files = Used()
    _using.append(files)
    try:
        yield files
    finally:
        _using[:] = [other for other in _using if other is not files]
