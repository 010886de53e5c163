"""sha256 of weight files, computed once per file and remembered while the file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

_BLOCK = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_REMEMBERED = 4096


def sha256_of(path: Path) -> str:
    """The file's sha256, in hex.

    A hub blob is named by it. Others are looked up in ``$XDG_CACHE_HOME/taskmerge/sha256.json`` by real path, size,
    inode and times of change, and read whole when anything differs.
    """
    real = path.resolve()
    if _SHA256.fullmatch(real.name):
        return real.name
    stat = real.stat()
    key = f"{real}:{stat.st_size}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    known = _load()
    if key not in known:
        digest = _read_whole(real)
        after = real.stat()
        if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns):
            return digest
        _remember(key, digest)
        return digest
    return known[key]


def fingerprint(path: Path) -> str:
    """A cheap identity of a file for resuming: size, times of change and a hash of its header and of blocks in it.

    Not a proof of equal content, unlike `sha256_of`; it notices a replaced or edited file without reading it whole.
    """
    stat = path.stat()
    digest = hashlib.sha256(f"{stat.st_size}:{stat.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 16))
        for block in range(64):
            file.seek(stat.st_size * block // 64)
            digest.update(file.read(4096))
    return digest.hexdigest()


def _read_whole(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "taskmerge" / "sha256.json"


def _load() -> dict[str, str]:
    try:
        table = json.loads(_cache().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _remember(key: str, digest: str) -> None:
    """Adds one line to the cache; a cache that cannot be written is no reason to fail."""
    try:
        path = _cache()
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {known: value for known, value in _load().items() if known.split(":")[0] != key.split(":")[0]}
        table = dict([*table.items(), (key, digest)][-_MOST_REMEMBERED:])
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(table), "utf-8")
        scratch.replace(path)
    except OSError:
        return
