"""Folders as they are: what lies there, with contents, so that a change anywhere is seen."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Snapshot = dict[str, str]


def snapshot(root: Path) -> Snapshot:
    """Path below `root` -> what is there: kind, mode, link target, sha256."""
    found: Snapshot = {}
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                found[os.path.relpath(entry.path, root)] = _state(entry)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
    return found


def _state(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return f"link to {Path(entry.path).readlink()}"
    status = entry.stat(follow_symlinks=False)
    mode = oct(stat.S_IMODE(status.st_mode))
    if entry.is_dir(follow_symlinks=False):
        return f"folder {mode}"
    if not stat.S_ISREG(status.st_mode):
        return f"special {mode}"
    if status.st_size > 64 << 20:
        return f"file {mode} {status.st_size} {status.st_mtime_ns}"
    return f"file {mode} {hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()}"


def differences(before: Snapshot, after: Snapshot) -> dict[str, str]:
    """Path -> made, removed or changed."""
    changed = dict.fromkeys(after.keys() - before.keys(), "made")
    changed |= dict.fromkeys(before.keys() - after.keys(), "removed")
    return changed | {path: "changed" for path in before.keys() & after.keys() if before[path] != after[path]}
