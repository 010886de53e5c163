"""Symbolic links inside a folder that came from somewhere else: they must not lead out of it."""

from __future__ import annotations

from pathlib import Path

from taskmerge.errors import CheckpointError


def check_link(path: Path, folder: Path) -> None:
    """A symbolic link may stay inside its folder or point into the hub cache's blobs, nowhere else."""
    if not path.is_symlink():
        return
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # Python's two ways of reporting a loop
        raise CheckpointError("a link that leads back to itself", str(path)) from None
    blobs = next((parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"), home)
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise CheckpointError(
            f"a link to a file outside the folder: {target}", str(path), "copy the file in, or name it"
        )
