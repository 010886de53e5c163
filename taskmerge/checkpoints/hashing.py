"""sha256 of weight files, computed once per file and remembered while the file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.stores.mirrors import remote_bytes
from taskmerge.errors import CheckpointError
from taskmerge.whole_files import written_whole
from taskmerge.words.places import cache_folder

_BLOCK = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_REMEMBERED = 4096


def sha256_of(path: Path) -> str:
    """Return the file's sha256, in hex.

    Looked up in ``$XDG_CACHE_HOME/taskmerge/sha256.json`` by real path, size, inode and times of change, and read whole
    when anything differs. Its name says nothing: the hub's cache names files by their hash, and so can a user.
    """
    real = path.resolve()
    if remote_bytes(real) is not None:
        return content_sha256(real)
    state = real.stat()
    key = _key(real, state)
    known = _load()
    if key not in known:
        digest = content_sha256(real)
        if _key(real, real.stat()) == key:
            remember([(real, state, digest)])
        return digest
    return known[key]


def remember(files: Sequence[tuple[Path, os.stat_result, str]]) -> None:
    """Have `sha256_of` know files that need not be read again; a cache that cannot be written does not cause an error.

    Args:
        files: path, state when its bytes were last known, and their sha256 in hex. A file that has changed since then
            has another state, and is read.
    """
    path = _cache()
    if path is None or not files:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = {_key(file.resolve(), state): digest for file, state, digest in files}
        places = {key.rsplit(":", 4)[0] for key in new}
        table = {key: digest for key, digest in _load().items() if key.rsplit(":", 4)[0] not in places}
        table = dict([*table.items(), *new.items()][-_MOST_REMEMBERED:])
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(table), "utf-8")
    except OSError:
        return


def fingerprint(path: Path) -> str:
    """Return a fast identity of a file for resuming: size, times of change and a hash of header and sampled blocks.

    Not a proof of equal content, unlike `sha256_of`; it notices a replaced or edited file without reading it whole.
    """
    if remote_bytes(path) is not None:
        return hashlib.sha256(path.read_bytes()).hexdigest()  # its uri, size and version
    stat = path.stat()
    digest = hashlib.sha256(f"{stat.st_size}:{stat.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 16))
        for block in range(64):
            file.seek(stat.st_size * block // 64)
            digest.update(file.read(4096))
    return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """Return the sha256 of the bytes that a file has now, in hex: all are read, and no cache is used."""
    digest = hashlib.sha256()
    if (remote := remote_bytes(path)) is not None:
        for chunk in remote:
            digest.update(chunk)
        return digest.hexdigest()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _cache() -> Path | None:
    folder = cache_folder()
    return folder / "sha256.json" if folder is not None else None


def _load() -> dict[str, str]:
    """What is remembered; a cache that makes no sense is none."""
    path = _cache()
    if path is None or not path.is_file():
        return {}
    try:
        table: dict[str, str] = read_json(path, dict[str, str], own=True)
    except CheckpointError:
        return {}
    return {key: digest for key, digest in table.items() if _SHA256.fullmatch(digest)}


def _key(real: Path, state: os.stat_result) -> str:
    return f"{real}:{state.st_size}:{state.st_ino}:{state.st_mtime_ns}:{state.st_ctime_ns}"
