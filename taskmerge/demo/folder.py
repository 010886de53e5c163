"""The folder that a demo works in: new, empty, or one that a demo of the same kind has begun."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskmerge.checkpoints.output.record import FILE, is_made_here, new_record, read_record, render
from taskmerge.errors import OutputError


def check_folder(out: Path, kind: str, inside: Iterable[str]) -> set[str]:
    """Refuse a folder that no demo of this kind has made; nothing in it, nor where links in it lead, is written over.

    Args:
        out: the folder.
        kind: of demo: what the record of its folder calls the stage.
        inside: names of what the demo writes to, itself and in it.

    Returns:
        The names of what it holds.

    Raises:
        OutputError: it holds something else, or a link.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError("exists and is not a folder", str(out), "choose another --out")
    holds = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if holds and not (is_made_here(out, "demo") and read_record(out)["stage"] == kind):
        what = "another demo" if is_made_here(out, "demo") else "something other than a demo"
        raise OutputError(f"the folder contains {what}", str(out), "choose another --out, or remove it")
    links = [path for place in inside for path in (out / place, *(out / place).glob("*")) if path.is_symlink()]
    if links:
        raise OutputError("is a link, which a demo never creates", str(links[0]), "remove it")
    return holds


def begin(out: Path, kind: str) -> None:
    """Make the folder and its record, unless they are there."""
    if not is_made_here(out, "demo"):
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE).write_text(render(new_record("demo", kind)), "utf-8")
