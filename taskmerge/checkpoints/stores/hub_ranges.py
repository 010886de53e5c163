"""Weight files of a hub repository at one commit, read in ranges instead of downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.files import Repository
from taskmerge.checkpoints.stores.interface import Changed, Stat
from taskmerge.checkpoints.stores.ranges import RemoteFile
from taskmerge.words.places import StoreUri


class HubRepository:
    """A repository on the hub as a read-only store of ranges of files, see `interface.Store`.

    conditional: a commit names its bytes for good. files: name -> size and sha256, as the hub states them.
    """

    conditional = True

    def __init__(self, repository: Repository, files: Mapping[str, tuple[int, str]]) -> None:
        place = repository.place
        self.uri = StoreUri(f"hf://{place.repo}@{repository.commit}" + (f"/{place.folder}" if place.folder else ""))
        self._root = self.uri.text.removeprefix("hf://") + "/"
        self._files = {name: Stat(size, digest, 0.0) for name, (size, digest) in files.items()}

    @cached_property
    def _system(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem()

    def stat(self, name: str) -> Stat | None:
        """See `Store.stat`."""
        return self._files.get(name)

    def names(self) -> Mapping[str, Stat]:
        """See `Store.names`."""
        return self._files

    def read(self, name: str, start: int, stop: int, state: str = "") -> bytes:
        """See `Store.read`."""
        if stop <= start:
            return b""
        found = self._files[name]
        if state and state != found.state:
            raise Changed
        with self._system.open(self._root + name, "rb", cache_type="none", size=found.size) as file:
            file.seek(start)
            data = bytes(file.read(stop - start))
        if len(data) != stop - start:
            raise OSError(f"{len(data):,} of {stop - start:,} bytes arrived")
        return data

    def put(self, name: str, data: bytes) -> str:
        """See `Store.put`."""
        raise NotImplementedError

    def upload(self, name: str, chunks: Any, size: int) -> str:
        """See `Store.upload`."""
        raise NotImplementedError

    def remove(self, names: Any) -> None:
        """See `Store.remove`."""
        raise NotImplementedError


class HubFile(RemoteFile):
    """A weight file of a repository as `RemoteFile`; it is the same input as the downloaded file."""

    def __init__(self, name: str, folder: Path, repository: Repository, store: HubRepository) -> None:
        self._repository = repository
        found = store.stat(name)
        assert found is not None
        super().__init__(name, folder / name, store, name, found)

    @property
    def origin(self) -> str:
        """See `WeightFile.origin`."""
        place = self._repository.place
        return f"{place.repo}@{self._repository.commit}/{place.folder}/{self.name}"

    @property
    def state(self) -> str:
        """The sha256 of the file, as the hub states it."""
        return self._stat.state
