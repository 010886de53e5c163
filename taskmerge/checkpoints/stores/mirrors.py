"""A folder in a store as a folder of this disk: small files are fetched, weights have files that stand for them.

A reader of a checkpoint always sees a folder. A file that stands for weights says so in its text and
contains nothing else; readers of formats, and hashing, ask here first. It lasts as long as the process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from taskmerge.checkpoints.stores.interface import UNFINISHED, Stat, Store, reading
from taskmerge.errors import CheckpointError, few
from taskmerge.words.places import StoreUri

if TYPE_CHECKING:
    from taskmerge.checkpoints.stores.ranges import RemoteFile  # what reads a store is loaded where there is one

_FETCHED = (
    "*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.vocab", "*.md",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_LARGEST = 512 << 20
_DEEPEST = 3
RECORD = "taskmerge.json"


@dataclass
class Mirror:
    """One folder of a store, as it was listed. folder: of this disk. files: name -> version."""

    uri: StoreUri
    store: Store
    folder: Path
    files: Mapping[str, Stat]
    opened: dict[str, RemoteFile] = field(default_factory=dict)

    def check(self) -> None:
        """Raise CheckpointError when a file of it is no longer what it was."""
        now = reading(self.uri, self.store.names)
        changed = [name for name, stat in self.files.items() if name not in now or now[name].state != stat.state]
        if changed:
            what = f"was written to while it was being read: {few(changed)}"
            raise CheckpointError(what, str(self.uri), "run it again when no other program writes to it")


_mirrors: dict[StoreUri, Mirror] = {}
_by_folder: dict[Path, Mirror] = {}


def mirror(uri: StoreUri) -> Path:
    """Return the path of this disk that stands for a folder or a file in a store.

    Raises CheckpointError: if nothing is there, if it cannot be read, or if it is an unfinished output.
    """
    from taskmerge.checkpoints.stores.opening import open_store

    store = open_store(uri)
    names = reading(uri, store.names)
    if not names:
        folder = mirror_of_file(uri) if "/" in uri.text.partition("://")[2] else None
        if folder is None:
            raise CheckpointError("there are no objects there", str(uri), "check bucket and folder")
        return folder
    if RECORD not in names and any(name.startswith(f"{UNFINISHED}/") for name in names):
        what = "is an unfinished output: it has no record, and marks of a run that is writing it or was interrupted"
        raise CheckpointError(what, str(uri), "run the same fuse again, or its missing parts and --finish")
    return _made(uri, store, names).folder


def mirror_of_file(uri: StoreUri) -> Path | None:
    """Return the path of this disk that stands for a file in a store; None without one."""
    from taskmerge.checkpoints.stores.opening import open_store

    store = open_store(uri.parent)
    stat = reading(uri, lambda: store.stat(uri.name))
    if stat is None:
        return None
    return _made(uri, store, {uri.name: stat}).folder / uri.name


def forget() -> None:
    """Read every store again from now on."""
    _mirrors.clear()


def mirrored(folder: Path | None) -> Mirror | None:
    """Return the store that a folder of this disk, or a folder above it, stands for; None for an ordinary folder."""
    for place in (folder, *folder.parents) if folder is not None and _by_folder else ():
        if (found := _by_folder.get(place)) is not None:
            return found
    return None


def remote_file(path: Path, name: str | None = None) -> RemoteFile | None:
    """Return the file in a store that a path of this disk stands for; None for an ordinary path.

    name: what its checkpoint calls it. Raises CheckpointError for one that cannot be read in ranges.
    """
    if (stands_for := _stands_for(path)) is None:
        return None
    found, key = stands_for
    if not key.endswith(".safetensors"):
        raise CheckpointError(
            "cannot be read from a store: only safetensors can be read in ranges", f"{found.store.uri}/{key}",
            "copy it to this disk, or save it as safetensors",
        )  # fmt: skip
    if key not in found.opened:
        from taskmerge.checkpoints.stores.ranges import RemoteFile

        found.opened[key] = RemoteFile(name or key, path, found.store, key, found.files[key])
    return found.opened[key]


def remote_bytes(path: Path) -> Iterator[bytes] | None:
    """Return the bytes of the file in a store that a path of this disk stands for; None for an ordinary path."""
    if (stands_for := _stands_for(path)) is None:
        return None
    found, key = stands_for
    return _streamed(found.store, key, found.files[key])


def _stands_for(path: Path) -> tuple[Mirror, str] | None:
    """The mirror and the key in its store of a file whose bytes are not on this disk; None of any other file."""
    found = mirrored(path.parent)
    if found is None:
        return None
    key = path.relative_to(found.folder).as_posix()
    return None if key not in found.files or _is_fetched(key, found.files[key]) else (found, key)


def _streamed(store: Store, key: str, stat: Stat, size: int = 8 << 20) -> Iterator[bytes]:
    for start in range(0, stat.size, size):
        stop = min(start + size, stat.size)
        yield reading(f"{store.uri}/{key}", lambda a=start, b=stop: store.read(key, a, b, stat.state))  # type: ignore[misc]


def _is_fetched(name: str, stat: Stat) -> bool:
    last = PurePosixPath(name).name
    return stat.size <= _LARGEST and any(fnmatchcase(last, pattern) for pattern in _FETCHED)


def _made(uri: StoreUri, store: Store, names: Mapping[str, Stat]) -> Mirror:
    here = {
        name: stat for name, stat in names.items()
        if not name.startswith(f"{UNFINISHED}/") and name.count("/") < _DEEPEST and ".." not in name.split("/") and name
    }  # fmt: skip
    known = _mirrors.get(uri)
    if known is not None and known.files == here:
        return known
    folder = Path(tempfile.mkdtemp(prefix="taskmerge-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder = folder.resolve() / (uri.name or "model")
    made = Mirror(uri, store, folder, here)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda row: _place(made, *row), here.items()))
    _mirrors[uri] = _by_folder[folder] = made
    return made


def _place(made: Mirror, name: str, stat: Stat) -> None:
    path = made.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_fetched(name, stat):
        uri = f"{made.store.uri}/{name}"
        path.write_bytes(reading(uri, lambda: made.store.read(name, 0, stat.size, stat.state)))
    else:
        path.write_text(f"This stands for {made.store.uri}/{name}, {stat.size:,} bytes, version {stat.state}\n")
    os.utime(path, (stat.modified, stat.modified))  # the same for every process that looks
