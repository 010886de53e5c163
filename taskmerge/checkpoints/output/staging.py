"""The folder in which the files of an output are collected, and the test whether a file there is ours."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import IO

from taskmerge.checkpoints.output.record import FILE, LOCK, LOCK_MARK, is_lock, is_made_here
from taskmerge.errors import OutputError, few
from taskmerge.words.system_errors import as_output_error

JOURNAL = ".taskmerge-journal.json"
NEXT_JOURNAL = f"{JOURNAL}.new"
SAVED = "saved"
"""Folder in which a library saves a model, before its files are moved."""
OWN = (LOCK, JOURNAL, NEXT_JOURNAL, FILE)


def take_lock(lock: IO[bytes], staging: Path, mode: int, taken: OutputError) -> os.stat_result:
    """Lock the lock file of a staging folder, at once or not at all; the state of the file.

    Args:
        lock: the file, opened.  staging: its folder.  mode: `fcntl.LOCK_EX` or `LOCK_SH`.
        taken: what to raise when another process holds it, or has published the folder since the file was opened.
    """
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
        held = os.fstat(lock.fileno())
        if not os.path.samestat(held, (staging / LOCK).stat()):
            raise FileNotFoundError
    except OSError as error:
        if not isinstance(error, BlockingIOError | PermissionError | FileNotFoundError):  # EIO, no locks there
            raise as_output_error(error, staging, "cannot be locked") or error from None
        raise taken from None
    return held


def files_below(folder: Path) -> list[str]:
    """Return every file and link below a folder, by its relative name; links to folders too."""
    found: list[str] = []
    for here, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        found += [os.path.relpath(Path(here) / name, folder) for name in (*files, *links)]
    return found


def begun_in(lock: bytes) -> set[str]:
    """Return the files that were begun, as the lock lists them; its last line may be truncated."""
    found: set[str] = set()
    for line in lock.split(b"\n")[1:]:
        with contextlib.suppress(ValueError):
            found.add(str(json.loads(line)))
    return found


def is_ours(name: str, begun: set[str]) -> bool:
    """Return whether a file of the folder was written by this package."""
    return name in OWN or name in begun or name.startswith((f"{SAVED}/", f".{SAVED}.partial/"))


def strange_folders(folder: Path, begun: set[str]) -> list[str]:
    """Return the folders that contain no file of this output, and are not where a library saves.

    Such a folder may be at the path of a file.
    """
    parents = {str(parent) for name in begun for parent in Path(name).parents}
    found = []
    for here, folders, _ in os.walk(folder):
        inside = [os.path.relpath(Path(here) / name, folder) for name in folders]
        inside = [name for name in inside if not (folder / name).is_symlink()]
        found += [f"{name} (a folder)" for name in inside if name not in parents and not _is_saving(name)]
    return found


def _is_saving(name: str) -> bool:
    return f"{name}/".startswith((f"{SAVED}/", f".{SAVED}.partial/"))


def check_staging(staging: Path) -> None:
    """Check that the staging place is empty or has an unfinished output of ours; refuse anything else by name."""
    if not os.path.lexists(staging):
        return
    what = "is in the place where the output is assembled, and was not made by taskmerge"
    if staging.is_symlink() or not staging.is_dir():
        raise OutputError(what, str(staging), "move it away")
    there, lock = {path.name for path in staging.iterdir()}, staging / LOCK
    locked = is_lock(lock) and (there == {LOCK} or lock.stat().st_size >= len(LOCK_MARK))
    if there and not (locked or JOURNAL in there or is_made_here(staging)):
        raise OutputError(what, str(staging), "move it away")
    begun = begun_in(lock.read_bytes()) if is_lock(lock) else set()
    strange = [name for name in files_below(staging) if not is_ours(name, begun) or (staging / name).is_symlink()]
    strange += strange_folders(staging, begun)
    if strange or (LOCK in there and not is_lock(lock)):
        what = (
            "there is an unfinished output here that contains files which taskmerge did not "
            f"write: {few(strange or [LOCK])}"
        )
        raise OutputError(what, str(staging), "move these out of it")
