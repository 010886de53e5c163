"""Whatever else fsspec opens, as a store: memory://, sftp://, hdfs://, …"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from taskmerge.checkpoints.stores.interface import UNFINISHED, Changed, Stat, part_size
from taskmerge.errors import UsageError
from taskmerge.words.places import StoreUri

_STATES = ("ETag", "etag", "e_tag", "md5Hash", "generation", "content_md5", "version_id")
_TIMES = ("LastModified", "last_modified", "modified", "mtime", "created", "updated")


class FileSystem:
    """See `interface.Store`."""

    conditional = False

    def __init__(self, uri: StoreUri) -> None:
        import fsspec

        self.uri = uri
        try:
            self._system, root = fsspec.core.url_to_fs(uri.text, use_listings_cache=False)
        except ImportError as error:
            move = f"install the library that fsspec opens {uri.scheme}:// with"
            raise UsageError(f"{uri.scheme}:// cannot be opened: {error}", next_move=move) from None
        self._root = f"{str(root).rstrip('/')}/"

    def stat(self, name: str) -> Stat | None:
        """See `Store.stat`."""
        try:
            row = self._system.info(self._root + name)
        except FileNotFoundError:
            return None
        return _stat(row) if row.get("type") == "file" else None

    def names(self) -> Mapping[str, Stat]:
        """See `Store.names`."""
        self._system.invalidate_cache()
        try:
            found: Mapping[str, Any] = self._system.find(self._root.rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        root = self._root.lstrip("/")
        return {
            path.lstrip("/")[len(root) :]: _stat(row)
            for path, row in found.items()
            if path.lstrip("/").startswith(root)
        }

    def read(self, name: str, start: int, stop: int, state: str = "") -> bytes:
        """See `Store.read`."""
        if stop <= start:
            return b""
        data = bytes(self._system.cat_file(self._root + name, start=start, end=stop))
        if len(data) != stop - start:
            now = self.stat(name)
            if now is None or (state and now.state != state):
                raise Changed
            raise OSError(f"{len(data):,} of {stop - start:,} bytes arrived")
        return data

    def put(self, name: str, data: bytes) -> str:
        """See `Store.put`."""
        self._parents(name)
        self._system.pipe_file(self._root + name, data)
        return self._state(name)

    def upload(self, name: str, chunks: Iterator[bytes], size: int) -> str:
        """See `Store.upload`."""
        unfinished = f"{UNFINISHED}/{uuid4().hex}"  # not all of these systems show a file only once it is whole
        self._parents(unfinished)
        self._parents(name)
        try:
            with self._system.open(self._root + unfinished, "wb", block_size=part_size(size)) as file:
                for chunk in chunks:
                    file.write(chunk)
            self._system.mv(self._root + unfinished, self._root + name)
        except BaseException:
            with contextlib.suppress(Exception):
                self._system.rm_file(self._root + unfinished)
            raise
        return self._state(name)

    def remove(self, names: Sequence[str]) -> None:
        """See `Store.remove`."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._root + name)

    def _parents(self, name: str) -> None:
        with contextlib.suppress(FileExistsError, NotImplementedError):
            self._system.makedirs(f"{self._root}{name}".rpartition("/")[0], exist_ok=True)

    def _state(self, name: str) -> str:
        self._system.invalidate_cache()
        found = self.stat(name)
        return found.state if found is not None else ""


def _stat(row: Mapping[str, Any]) -> Stat:
    size = int(row.get("size") or 0)
    when = next((row[key] for key in _TIMES if row.get(key)), 0)
    modified = _seconds(when)
    named = next((str(row[key]) for key in _STATES if row.get(key)), None)
    return Stat(size, named or f"{size} bytes of {modified!r}", modified)


def _seconds(when: object) -> float:
    """A time as a file system says it, since 1970."""
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        return when.timestamp()
    return float(when) if isinstance(when, int | float) else 0.0
