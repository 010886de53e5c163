"""Messages between processes that write parts of one output: small JSON texts next to its files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypedDict

from taskmerge.errors import OutputError
from taskmerge.whole_files import of_this_process, written_whole
from taskmerge.words.json_text import Shape, parse_json
from taskmerge.words.system_errors import writing

IDENTITY = "run.json"
FILES = "files"


class Run(TypedDict):
    """The run that all parts of one output belong to. identity: see `merging.identity`."""

    identity: str


class FileNote(TypedDict):
    """A weight file that is finished. part: who wrote it ("2/8"). state: what the store calls this version of it, ""
    on a disk."""

    sha256: str
    size: int
    part: str
    state: str


class Notes(Protocol):
    """Texts by name, in a place that every process of one output reads."""

    @property
    def place(self) -> str:
        """The name of the place in messages."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return one text; None if it is missing."""
        ...

    def write(self, name: str, text: str) -> None:
        """Write one, whole or not at all, over an older one."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder of notes: `files/…`."""
        ...


def read_note(notes: Notes, name: str, shape: type[Shape] | Any) -> Shape | None:
    """Return the content of a note; None if it is missing. Raises CheckpointError for an invalid one."""
    text = notes.read(name)
    if text is None:
        return None
    move = "remove the unfinished output and run all parts again"
    found: Shape = parse_json(text, shape, f"{notes.place}/{name}", move)
    return found


def write_note(notes: Notes, name: str, value: Any) -> None:
    """Write a note as JSON."""
    notes.write(name, json.dumps(value))


def join_run(notes: Notes, identity: str, discard: str) -> None:
    """Record the run that the notes belong to; the first process decides.

    discard: how what is there can be thrown away. Raises OutputError for a run that cannot be told from others, and
    when the parts there are of another run.
    """
    if not identity:
        what = "inputs in memory, or code without a file: it is impossible to check whether all parts use the same ones"
        raise OutputError(what, notes.place, "write the complete output, without --part")
    known: Run | None = read_note(notes, IDENTITY, Run)
    if known is None:
        write_note(notes, IDENTITY, {"identity": identity})
        known = read_note(notes, IDENTITY, Run)
    if known is None or known["identity"] != identity:
        what = "there are parts here from another recipe, other inputs or another version"
        raise OutputError(what, notes.place, discard)


def note_name(file: str) -> str:
    """Return the note about a weight file; notes about files of module folders are in a folder."""
    return f"{FILES}/{file.replace('/', '%2F')}.json"


def file_of(name: str) -> str:
    """Return the weight file that a note is about."""
    return name.rpartition("/")[2].removesuffix(".json").replace("%2F", "/")


class LocalNotes:
    """Notes in a folder of this disk. begin: called with the name of every file before it is made."""

    def __init__(self, folder: Path, begin: Callable[[Path], None]) -> None:
        self.folder, self._begin = folder, begin
        self.place = str(folder)

    def read(self, name: str) -> bytes | None:
        """See `Notes.read`."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """See `Notes.write`."""
        path = self.folder / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = of_this_process(path)  # nothing is removed beside it: parts on other machines write here too
            self._begin(unfinished)
            self._begin(path)
            with written_whole(path, unfinished), unfinished.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def names(self, folder: str) -> list[str]:
        """See `Notes.names`."""
        try:
            rows = sorted((self.folder / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [f"{folder}/{path.name}" for path in rows if not path.name.startswith(".") and path.is_file()]
