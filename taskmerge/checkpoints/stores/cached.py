"""Ranges of remote files kept on this disk, within a budget that the user gives: for merges of the same models.

A range is kept under a hash of all that tells it from others: uri, version (ETag), size, first and last byte. So what
was written to since is another range, and nothing is ever out of date. A kept file begins with a hash of its bytes: one
that is torn or was changed counts as absent. Several processes may share a folder; each removes what was used longest
ago when it finds too much there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from taskmerge.errors import UsageError
from taskmerge.whole_files import written_whole
from taskmerge.words.places import cache_folder

_DIGEST = 16
_NAME = re.compile(r"[0-9a-f]{40}\.range")
_UNFINISHED = re.compile(r"[0-9a-f]{32}\.unfinished")
LEAST = 128 << 20
"""Of less a budget, its share below holds no block of a file."""
_SHARE = 16
"""One part in so many of the budget is written between two listings of the folder, and twice as much kept free."""


class RangeCache:
    """Ranges kept in a folder. budget: maximum number of bytes of all of them, from any process."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self._unseen = budget  # lists the folder before it stores anything

    def get(self, key: tuple[object, ...], size: int, fetch: Callable[[], bytes]) -> bytes:
        """Return the `size` bytes of a range, from the folder or from `fetch`; its result is kept if it fits."""
        path = self.folder / f"{hashlib.blake2b(repr(key).encode(), digest_size=20).hexdigest()}.range"
        data = self._kept(path, size)
        if data is None:
            data = fetch()
            with contextlib.suppress(OSError):  # a disk that is full or gone makes it no cache, and no failure
                self._keep(path, data)
        return data

    def _kept(self, path: Path, size: int) -> bytes | None:
        try:
            text = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        data = text[_DIGEST:]
        return data if len(data) == size and _digest(data) == text[:_DIGEST] else None

    def _keep(self, path: Path, data: bytes) -> None:
        size = len(data) + _DIGEST
        if size > self.budget // _SHARE:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._unseen + size > self.budget // _SHARE:
            self._make_room()
            self._unseen = 0
        with written_whole(path, self.folder / f"{uuid4().hex}.unfinished") as unfinished:
            unfinished.write_bytes(_digest(data) + data)
        self._unseen += size

    def _make_room(self) -> None:
        """Remove what was used longest ago, until so much is free that the next look comes in time."""
        rows = []
        for entry in os.scandir(self.folder):
            if _NAME.fullmatch(entry.name) or _UNFINISHED.fullmatch(entry.name):  # no files of other programs
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    rows.append((found.st_mtime, found.st_size, entry.path))
        total, most = sum(size for _, size, _ in rows), self.budget - 2 * self.budget // _SHARE
        for _, size, path in sorted(rows):
            if total <= most:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
            total -= size


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


_used: RangeCache | None = None


def use_cache(budget: int | None) -> RangeCache | None:
    """Keep ranges of remote files from now on, within `budget` bytes; None: keep none.

    Raises UsageError where it is too small, and where this user has no folder for such things.
    """
    global _used
    if budget is None:
        _used = None
        return None
    if budget < LEAST:
        raise UsageError(f"--cache-size: {budget:,} bytes are too few", next_move="give 128MiB or more")
    home = cache_folder()
    if home is None:
        raise UsageError(
            "--cache-size needs a cache folder, and there is none", next_move="set XDG_CACHE_HOME, or leave it out"
        )
    _used = RangeCache(home / "ranges", budget)
    return _used


def is_cache_used() -> bool:
    """Return whether the user wants ranges to be kept."""
    return _used is not None


def cached(key: tuple[object, ...], size: int, fetch: Callable[[], bytes]) -> bytes:
    """Return the bytes of a range, kept if the user wants a cache."""
    return fetch() if _used is None else _used.get(key, size, fetch)
