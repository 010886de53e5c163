"""The inputs of a stage, as its note records them: every file that was opened, and its identity."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoints.hashing import fingerprint
from taskmerge.checkpoints.output.record import FILE as RECORD
from taskmerge.checkpoints.output.replacing import Site

_LISTED = "/"  # behind a folder's name: its files
_NO_SAY = (".md", ".txt", ".png", ".jpg", ".html", ".lock", ".log")
"""Files of a folder that decide nothing, like its record: cards and pictures. merges.txt and vocab.txt do."""
_SAY = ("merges.txt", "vocab.txt")


@dataclass(frozen=True)
class Inputs:
    """Identities of opened files. folder: of the recipe, which names are relative to. report: of notes, no input."""

    folder: Path
    report: Path

    def identities(self, paths: Sequence[Path], media: bool, outputs: Sequence[Path] = ()) -> dict[str, str]:
        """Return the identity of files, and of folders with every file below that matters, by name.

        media: by size and time of change alone. outputs: of the stage itself, which are not inputs.
        """
        unfinished = [Site(place).staging for place in outputs]  # a journal is read by the run that continues from it
        own = [place.resolve() for place in (self.report, *outputs, *unfinished)]
        found: dict[str, str] = {}
        for path in paths:
            if any(path.resolve().is_relative_to(place) for place in own) or not path.exists() or path.name == RECORD:
                continue
            if path.is_dir():
                files = list(_files(path))
                found[self._name(path) + _LISTED] = ", ".join(str(file.relative_to(path)) for file in files)
                found |= {self._name(file): fingerprint(file) for file in files}
            else:
                found[self._name(path)] = _quick(path) if media else fingerprint(path)
        return found

    def same(self, inputs: Mapping[str, str]) -> bool:
        """Return whether every recorded file is unchanged; true for a stage that was killed before it opened any."""
        return all(self._is(name, identity) for name, identity in inputs.items())

    def _is(self, name: str, identity: str) -> bool:
        path = self.folder / name.removesuffix(_LISTED)
        try:
            if name.endswith(_LISTED):
                return ", ".join(str(file.relative_to(path)) for file in _files(path)) == identity
            return (_quick(path) if ":" in identity else fingerprint(path)) == identity
        except OSError:
            return False

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.folder)


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder that have a say, in order; hidden folders and unfinished outputs left out."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") or part.endswith(".partial") for part in inside) or not path.is_file():
            continue
        if path.name != RECORD and (path.suffix not in _NO_SAY or path.name in _SAY):
            yield path


def _quick(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"
