"""One safetensors file: its header at once, its bytes mapped when a tensor is first read."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from taskmerge.checkpoints.formats.bus_errors import Watched
from taskmerge.checkpoints.formats.header import Entry, read_file_header
from taskmerge.checkpoints.formats.held import Checked, Held, used
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError

_LEAST_UNMAPPED = 1 << 18


class Repository(Protocol):
    """A hub repository at one commit, as far as its files must know it; `hub.Snapshot` is one."""

    @property
    def place(self) -> Any:
        """The place of the repository on the hub."""

    @property
    def commit(self) -> str:
        """The commit of the repository."""

    def fetch(self, name: str) -> Path:
        """Download a file if necessary, and return its path."""


class WeightFile(Checked):
    """A safetensors file on this disk, or on the hub until its first tensor is read.

    name: relative to the checkpoint's folder. entries: name -> header entry; given: known without reading a header.
    config: what the file itself says of the model's config. notes: what was assumed, or left out, when it was opened.
    """

    def __init__(self, name: str, path: Path | None = None, snapshot: Repository | None = None,
                 entries: Mapping[str, Entry] | None = None) -> None:  # fmt: skip
        self.name = name
        self.config: Mapping[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self._snapshot = snapshot
        self._path = path
        self._lock = threading.Lock()
        self._region: mmap.mmap | None = None
        self._bytes: np.ndarray | None = None
        self._watched: Watched | None = None
        self.held = Held.of(path) if path is not None else None
        if entries is not None:
            self.entries: dict[str, Entry] = dict(entries)
        elif path is not None:
            self.entries = {entry.info.name: entry for entry in read_file_header(path).entries}
        else:
            self.entries = _remote_entries(name, snapshot)

    @property
    def parts(self) -> tuple[WeightFile, ...]:
        """The files that hold it: itself, or those that it is joined from."""
        return (self,)

    @property
    def path(self) -> Path:
        """The path of the file; a file that is only on the hub is downloaded first."""
        if self._path is None:
            assert self._snapshot is not None
            path = self._snapshot.fetch(self.name)
            self.held = Held.of(path)
            header = read_file_header(path)
            if [entry.info for entry in header.entries] != [entry.info for entry in self.entries.values()]:
                raise CheckpointError(
                    "the downloaded file is not the one whose header was read",
                    str(path),
                    "remove it from the hub's cache, and run the same command again",
                )
            self.entries = {entry.info.name: entry for entry in header.entries}
            self._path = path
        return self._path

    @property
    def origin(self) -> str | None:
        """The permanent name of its content: repository, commit and place on the hub. None for a file of this disk."""
        if self._snapshot is None:
            return None
        return f"{self._snapshot.place.repo}@{self._snapshot.commit}/{self._snapshot.place.folder}/{self.name}"

    @property
    def state(self) -> str | None:
        """The version of the file that a store states, if its sha256 would need a complete read.

        None for a file whose bytes are all on a disk.
        """
        return None

    @property
    def local(self) -> bool:
        """True if reading needs no download."""
        return self._path is not None

    def check(self) -> None:
        """Raise CheckpointError when it is no longer the file whose header was read."""
        if self.held is not None:
            self.held.check(self._watched is not None and self._watched.torn)

    def mapped(self) -> np.ndarray:
        """Return the whole file as bytes, mapped read-only."""
        used(self)
        with self._lock:
            if self._bytes is None:
                self._map()
                assert self._bytes is not None
        return self._bytes

    def _map(self) -> None:
        path = self.path
        self.check()
        try:
            with path.open("rb") as file:
                region = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except OSError as error:
            raise CheckpointError(
                f"cannot be read: {error.strerror}", str(path), "check that the file exists and that you may read it"
            ) from None
        except ValueError:  # nothing is left of it
            region = mmap.mmap(-1, mmap.PAGESIZE)
        self.check()
        if len(region) < max((entry.stop for entry in self.entries.values()), default=0):
            raise CheckpointError(
                "the file has shrunk since its header was read",
                str(path),
                "run it again when no other program writes to it",
            )
        self._watched = Watched(region)
        self._region, self._bytes = region, np.frombuffer(region, dtype=np.uint8)

    def release(self, name: str, start: int, stop: int) -> None:
        """Unmap the pages of entries [start, stop); they are mapped again if they are read again.

        At the end of the process, unmapping gigabytes takes longer than the sync of the last file, on one core. Small
        tensors
        are not unmapped: pages are mapped by the dozen, and would be mapped again for the next tensor.
        """
        if self._region is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        entry, page = self.entries[name], mmap.PAGESIZE
        first = -(-(entry.start + start * entry.info.format.size) // page) * page
        last = (entry.start + stop * entry.info.format.size) // page * page
        if last - first >= _LEAST_UNMAPPED:
            self._region.madvise(mmap.MADV_DONTNEED, first, last - first)

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Return entries [start, stop) of one tensor, as `StateDict.read` does."""
        data = self.mapped()
        entry = self.entries[name]
        storage = entry.info.format.storage
        raw = data[entry.start : entry.stop]
        if storage is None:  # formats of less than a byte: the packed bytes, whole
            return raw
        size = storage.itemsize
        return raw[start * size : None if stop is None else stop * size].view(storage)

    def view(self, name: str) -> np.ndarray | None:
        """Return one complete tensor if it is a view of mapped pages; else None."""
        return self.read(name, 0, None)


def _remote_entries(name: str, snapshot: Repository | None) -> dict[str, Entry]:
    from huggingface_hub import HfApi

    assert snapshot is not None
    place = snapshot.place
    inside = f"{place.folder}/{name}" if place.folder else name
    try:
        remote = HfApi().parse_safetensors_file_metadata(place.repo, inside, revision=snapshot.commit)
    except Exception as error:
        raise CheckpointError(
            f"its header cannot be fetched from the hub: {error}",
            f"{place}/{name}",
            "check the network and HF_TOKEN, then run the same command again",
        ) from None
    rows = sorted(remote.tensors.items(), key=lambda row: row[1].data_offsets)
    return {
        tensor: Entry(TensorInfo(tensor, row.dtype, tuple(row.shape)), row.data_offsets[0], row.data_offsets[1])
        for tensor, row in rows
    }
