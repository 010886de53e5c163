"""Symbolic links inside a folder that came from somewhere else: they must not lead out of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskmerge.errors import CheckpointError


def check_link(path: Path, folder: Path) -> None:
    """Check that a symbolic link stays inside its folder or leads to the blobs of the hub's cache.

    path: a file or folder in `folder`; any part of the way to it may be the link.
    """
    if not _has_link(path, folder):
        return
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # Python's two ways of reporting a loop
        raise CheckpointError(
            "a link that leads back to itself", str(path), "replace it by a copy of the file that it should lead to"
        ) from None
    blobs = next((parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"), home)
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise CheckpointError(
            f"a link to a file outside the folder: {target}",
            str(path),
            "copy the file into the folder, or name it directly",
        )


def check_links(folder: Path, modules: Iterable[str]) -> None:
    """Check all links in a model's folder that a library may follow: among its files, and in its module folders.

    Raises CheckpointError for the first link that leads outside, and for a pipe or a device, for which a library would
    wait.
    """
    for inside in {"", "additional_chat_templates", *modules}:
        here = folder / inside
        if not here.is_dir():
            continue
        check_link(here, folder)
        for path in sorted(here.rglob("*") if inside else here.iterdir()):
            if path.is_symlink() and (inside or not path.is_dir()) and path.suffix != ".md":
                check_link(path, folder)
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise CheckpointError(
                    "is not a file", str(path), "remove it: any program that reads it would wait forever"
                )


def _has_link(path: Path, folder: Path) -> bool:
    try:
        inside = path.relative_to(folder).parts
    except ValueError:
        return True
    return any(folder.joinpath(*inside[: count + 1]).is_symlink() for count in range(len(inside)))
