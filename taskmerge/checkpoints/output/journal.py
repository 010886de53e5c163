"""The journal of an unfinished output: which run it is of, what is finished, what was begun; and what is none of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.errors import CheckpointError, OutputError

JOURNAL = ".taskmerge-journal.json"


class _Finished(TypedDict):
    identity: str
    finished: dict[str, str]


class Journal(_Finished, total=False):
    """identity: of the run. finished: file -> sha256. begun: every other file that the run has opened for writing."""

    begun: list[str]


def read_journal(path: Path) -> Journal:
    """A journal. Raises OutputError for one that makes no sense, or names files outside its folder."""
    try:
        journal: Journal = read_json(path, Journal)
    except CheckpointError as error:
        what = f"an unfinished run lies here, and its journal {error.problems[0].what}"
        raise OutputError(what, str(path.parent), "--fresh throws it away") from None
    names = (*journal["finished"], *journal.get("begun", []))
    if any("\0" in name or ".." in Path(name).parts or Path(name).is_absolute() for name in names):
        what = "an unfinished run lies here, and its journal names files outside"
        raise OutputError(what, str(path.parent), "--fresh throws it away")
    return journal


def strangers(folder: Path, own: set[str]) -> list[str]:
    """What lies in a folder beside the files `own`, and the folders that these lie in: their names, and what they are
    where they are no files. A link is never one's own."""
    parents = {str(parent) for name in own for parent in Path(name).parents}
    found = []
    for here, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(here) / name
            inside = str(path.relative_to(folder))
            if path.is_symlink():
                found.append(f"{inside} (a link)")
            elif path.is_dir():
                found += [] if inside in parents else [f"{inside} (a folder)"]
            elif inside not in own or not path.is_file():
                found.append(inside)
    return found
