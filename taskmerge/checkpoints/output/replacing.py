"""May an output be put where the user says, and putting it there: the one place where folders are replaced or removed.

An existing folder is replaced only if it was made here, and only the files that are as they were written. What
else is in such a folder is reported and nothing is done. The older folder stays until the new one is in its place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskmerge.checkpoints.output.record import Contents, contents, is_made_here, read_record
from taskmerge.checkpoints.output.staging import check_staging
from taskmerge.errors import CheckpointError, OutputError, few
from taskmerge.words.places import output_path

ELSEWHERE = "move it away, or choose another output path"
PREVIOUS = "previous"
"""Behind the name of an output: where the one before it is kept on request."""


@dataclass(frozen=True)
class Site:
    """The place of a new folder.

    final: the folder. older: our files there, which will be replaced; None without any. spare: our files in
    `NAME-previous`, if the older folder is to be kept there.
    """

    final: Path
    older: Contents | None = None
    spare: Contents | None = None
    keep: bool = False
    left: list[str] = field(default_factory=list)

    @property
    def aside(self) -> Path:
        """The path of the older folder for the moment between two renames."""
        return beside(self.final, "replaced")

    @property
    def staging(self) -> Path:
        """The folder in which its files are collected."""
        return beside(self.final, "partial")

    @property
    def previous(self) -> Path:
        """The folder in which the older one is kept on request."""
        return self.final.with_name(f"{self.final.name}-{PREVIOUS}")


def beside(final: Path, what: str) -> Path:
    """Return the path .NAME.what in the folder of NAME."""
    return final.parent / f".{final.name}.{what}"


def absolute(out: str | os.PathLike[str]) -> Path:
    """Return the absolute place of an output. Raises UsageError for a path that is not on this disk."""
    place = Path.cwd() / output_path(out)
    return place.resolve() if ".." in place.parts else place


def site(final: Path, fresh: bool = False, inputs: Iterable[Path] = (), *, keep: bool = False) -> Site:
    """Return the place for an output, checked before any work is done.

    Args:
        final: the folder to make.
        fresh: replace what was made here earlier.
        inputs: folders and files that are read, the recipe's among them: the output may not take their place.
        keep: keep what is replaced as `NAME-previous`.

    Raises:
        OutputError: if there is something that may not be replaced; the message names it.
    """
    check_apart(final, inputs)
    older = _giving_way(final, fresh)
    place = Site(final, older, keep=keep)
    _check_aside(place.aside)
    check_staging(place.staging)
    if not keep:
        return place
    check_apart(place.previous, inputs)
    return Site(final, older, _giving_way(place.previous, True), True)


def _giving_way(final: Path, fresh: bool) -> Contents | None:
    """What of ours is at `final`; None for nothing, or an empty folder."""
    if final.is_symlink() or (os.path.lexists(final) and not final.is_dir()):
        raise OutputError("exists and is not a folder", str(final), "choose another output path")
    if not final.exists():
        return None
    if os.path.ismount(final):
        raise OutputError(
            "is a mount point, which cannot be replaced", str(final), f"use a folder in it: {final / 'model'}"
        )
    try:
        empty = not any(final.iterdir())
    except OSError as error:
        raise OutputError(f"cannot be read: {error.strerror}", str(final), "choose another output path") from None
    if empty:
        return None
    return _ours(final, fresh)


def _ours(final: Path, fresh: bool) -> Contents:
    try:
        read_record(final)
    except CheckpointError as error:
        what = f"the output folder already exists, is not empty, and {error.problems[0].what}"
        raise OutputError(what, str(final), ELSEWHERE) from None
    if not fresh:
        raise OutputError("the output folder already exists", str(final), "--fresh replaces it, --out writes elsewhere")
    found = contents(final)
    if found.others:
        what = f"would be replaced, but contains files that taskmerge did not write: {few(found.others)}"
        raise OutputError(what, str(final), "move these out of it, or choose another output path")
    return found


def check_apart(final: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace an input, a folder that contains one, or the working directory."""
    where = final.resolve()
    if where == Path(where.anchor) or Path.cwd().resolve().is_relative_to(where):
        move = "choose another output path, such as ./model"
        raise OutputError("the output would replace the current folder, or one above it", str(final), move)
    for place in inputs:
        if place.resolve().is_relative_to(where):
            raise OutputError(f"the output would replace an input: {place}", str(final), "choose another output path")


def _check_aside(aside: Path) -> None:
    """What a killed run left between its two renames may go; anything else may not."""
    if os.path.lexists(aside) and not _may_go(aside):
        what = "is in the place where the previous output is kept during replacement, and was not made by taskmerge"
        raise OutputError(what, str(aside), "move it away")


def _may_go(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return not any(folder.iterdir()) or (is_made_here(folder) and not contents(folder).others)


def put_in_place(staged: Path, place: Site) -> None:
    """Move a finished folder to its place; the older one is then removed, or kept on request.

    What turned up in the older folder meanwhile stays in it, and is in `place.left`.
    """
    if place.older is not None:
        _drop(place.aside)  # of a run that was killed after its last rename
        place.final.rename(place.aside)
    try:
        staged.rename(place.final)
    except OSError:
        if place.older is not None:
            place.aside.rename(place.final)
        raise
    with contextlib.suppress(OSError):  # all of it is on disk; should its name not be, a crash leaves it unpublished
        sync(place.final.parent)
    if not place.aside.exists():
        return
    if place.keep:
        if place.spare is not None:
            place.left.extend(remove(place.previous, place.spare.own))
        place.aside.rename(place.previous)
    elif place.older is not None:
        place.left.extend(remove(place.aside, place.older.own))
    else:  # a run was killed between the two renames
        _drop(place.aside)


def _drop(aside: Path) -> None:
    if aside.exists() and _may_go(aside):
        remove(aside, contents(aside).own if any(aside.iterdir()) else {})


def remove(folder: Path, own: Mapping[str, os.stat_result]) -> list[str]:
    """Remove the unchanged files of a folder, then the folder; return the names that are left in it.

    own: name -> state when it was looked at; the record goes last, so that what a kill leaves is still known as ours.
    """
    for name, state in sorted(own.items(), key=lambda row: (row[0].startswith("taskmerge"), row[0])):
        path = folder / name
        with contextlib.suppress(OSError):
            if _same(path.lstat(), state):
                path.unlink()
    for inside in sorted({str(parent) for name in own for parent in Path(name).parents}, key=len, reverse=True):
        with contextlib.suppress(OSError):
            (folder / inside).rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return sorted(str(path) for path in folder.rglob("*") if not path.is_dir()) if folder.exists() else []


def _same(one: os.stat_result, two: os.stat_result) -> bool:
    return (one.st_ino, one.st_size, one.st_mtime_ns) == (two.st_ino, two.st_size, two.st_mtime_ns)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
