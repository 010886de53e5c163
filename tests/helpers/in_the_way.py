"""What may stand where an output is to be made, and a picture of a folder by which one sees what was touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from taskmerge.checkpoints.output.writing import OutputFolder


def picture(folder: Path) -> dict[str, bytes | str]:
    """Every file, link and folder below a folder: its bytes, where it leads, or "folder"."""
    found: dict[str, bytes | str] = {}
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here) / name
            if path.is_symlink():
                found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
            else:
                found[str(path.relative_to(folder))] = "folder" if path.is_dir() else path.read_bytes()
    return found


def ours(folder: Path) -> Path:
    """A folder made here earlier."""
    with OutputFolder(folder, identity="") as output:
        output.add_text("older.json", "{}")
        output.add_text("1_Pooling/config.json", "{}")
        output.publish()
    return folder


def strangers(folder: Path) -> Path:
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years of work")
    return folder


def _inside(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def put(out: Path) -> None:
        change(ours(out))

    return put


def _link(to: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda out: out.symlink_to(to(out.with_name("elsewhere")))


def _beside(what: str, put: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda out: put(out.with_name(f".{out.name}.{what}"))


def _foreign_lock(place: Path) -> None:
    place.mkdir()
    (place / ".lock").write_text("4711")


def _linked_lock(place: Path) -> None:
    place.with_name("precious").write_text("precious")
    place.mkdir()
    (place / ".lock").symlink_to(place.with_name("precious"))


def _moved_away(out: Path) -> None:
    shutil.move(out / "1_Pooling", out.with_name("pooling"))
    (out / "1_Pooling").symlink_to(out.with_name("pooling"))


def _half_ours(out: Path) -> None:
    """An unfinished output of ours, into which somebody has put something."""
    with OutputFolder(out, identity="") as output:
        output.add_text("config.json", "{}")
    (output.staging / "thesis.tex").write_text("ten years of work")


NEVER: dict[str, Callable[[Path], object]] = {
    "somebody's folder": strangers,
    "a file": lambda out: out.write_text("mine"),
    "a link to somebody's folder": _link(strangers),
    "a link to a folder of ours": _link(ours),
    "a link that leads nowhere": lambda out: out.symlink_to("nowhere"),
    "a link to an empty folder": _link(lambda place: place.mkdir() or place),  # type: ignore[func-returns-value]
    "ours and a file": _inside(lambda out: (out / "thesis.tex").write_text("ten years of work")),
    "ours and an empty folder": _inside(lambda out: (out / "plans").mkdir()),
    "ours and a file in a folder of ours": _inside(lambda out: (out / "1_Pooling" / "notes").write_text("mine")),
    "ours and a link": _inside(lambda out: (out / "data").symlink_to(strangers(out.with_name("elsewhere")))),
    "ours, a file rewritten": _inside(lambda out: (out / "older.json").write_text('{"mine": 1}')),
    "ours, a folder now a link": _inside(_moved_away),
    "a record that is junk": _inside(lambda out: (out / "taskmerge.json").write_text("{")),
    "somebody's .partial": _beside("partial", strangers),
    "a .partial that is a link": _beside(
        "partial", lambda place: place.symlink_to(strangers(place.with_name("elsewhere")))
    ),
    "a .partial that is a file": _beside("partial", lambda place: place.write_text("mine")),
    "a .partial with somebody's lock": _beside("partial", _foreign_lock),
    "a .partial whose lock is a link": _beside("partial", _linked_lock),
    "our .partial and a file": _half_ours,
    "somebody's .replaced": _beside("replaced", strangers),
    "a .replaced that is a link": _beside(
        "replaced", lambda place: place.symlink_to(ours(place.with_name("elsewhere")))
    ),
    "our .replaced and a file": _beside("replaced", lambda place: (ours(place) / "thesis.tex").write_text("work")),
}
"""Name -> puts something at or beside an output that no command may touch, asked to replace or not."""

GIVES_WAY: dict[str, Callable[[Path], object]] = {
    "nothing": lambda out: None,
    "an empty folder": lambda out: out.mkdir(),
    "ours": ours,
    "our .partial": lambda out: OutputFolder(out, identity="").__enter__().__exit__(),
    "an empty .partial": _beside("partial", lambda place: place.mkdir()),
    "our .replaced": _beside("replaced", ours),
}
