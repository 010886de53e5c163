"""Where the files of an output are collected, and which of the files there are ours."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from taskmerge.checkpoints.output.record import FILE, LOCK, LOCK_MARK, is_lock, is_made_here
from taskmerge.errors import OutputError, few

JOURNAL = ".taskmerge-journal.json"
SAVED = "saved"
"""Folder in which a library saves a model, before its files are taken over."""
OWN = (LOCK, JOURNAL, f"{JOURNAL}.new", FILE)


def files_below(folder: Path) -> list[str]:
    """Every file and link below a folder, by its relative name; links to folders too."""
    found: list[str] = []
    for here, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        found += [os.path.relpath(Path(here) / name, folder) for name in (*files, *links)]
    return found


def begun_in(lock: bytes) -> set[str]:
    """The files that were begun, as a lock says; its last line may be cut."""
    found: set[str] = set()
    for line in lock.split(b"\n")[1:]:
        with contextlib.suppress(ValueError):
            found.add(str(json.loads(line)))
    return found


def is_ours(name: str, begun: set[str]) -> bool:
    """Whether a file of the folder was written here."""
    return name in OWN or name in begun or name.startswith((f"{SAVED}/", f".{SAVED}.partial/"))


def check_staging(staging: Path) -> None:
    """What lies where files are to be collected is an unfinished output of ours, nothing, or refused by name."""
    if not os.path.lexists(staging):
        return
    what = "stands where the output is put together, and was not made by taskmerge"
    if staging.is_symlink() or not staging.is_dir():
        raise OutputError(what, str(staging), "move it away")
    there, lock = {path.name for path in staging.iterdir()}, staging / LOCK
    locked = is_lock(lock) and (there == {LOCK} or lock.stat().st_size >= len(LOCK_MARK))
    if there and not (locked or JOURNAL in there or is_made_here(staging)):
        raise OutputError(what, str(staging), "move it away")
    begun = begun_in(lock.read_bytes()) if is_lock(lock) else set()
    strange = [name for name in files_below(staging) if not is_ours(name, begun) or (staging / name).is_symlink()]
    if strange or (LOCK in there and not is_lock(lock)):
        what = f"an unfinished output lies here, and in it what taskmerge did not write: {few(strange or [LOCK])}"
        raise OutputError(what, str(staging), "move these out of it")
