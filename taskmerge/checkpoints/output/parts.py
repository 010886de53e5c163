"""Parts of one output on a disk: several processes collect files in ``.NAME.partial``, one of them publishes it.

A part holds the folder's lock shared, so that no process publishes it or writes it completely meanwhile, and a lock of
its own on each file that it writes. What it finished it notes, with the sha256; `PartsFolder` reads the notes and every
file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from taskmerge.checkpoints.formats.held import using
from taskmerge.checkpoints.hashing import content_sha256
from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.output.notes import (
    FILES,
    IDENTITY,
    FileNote,
    LocalNotes,
    Run,
    file_of,
    join_run,
    note_name,
    read_note,
    write_note,
)
from taskmerge.checkpoints.output.record import LOCK, LOCK_MARK
from taskmerge.checkpoints.output.replacing import absolute, site, sync
from taskmerge.checkpoints.output.shard_writer import BUFFER, ShardWriter
from taskmerge.checkpoints.output.staging import JOURNAL, begun_in, files_below, is_ours, take_lock
from taskmerge.checkpoints.output.writing import OutputFolder
from taskmerge.errors import OutputError, few
from taskmerge.words.parts import Part
from taskmerge.words.system_errors import writing

NOTES = ".taskmerge-parts"
"""The folder of notes in ``.NAME.partial``."""


class LocalParts:
    """One process's share of an output that others write too. final, inputs, fresh: see `OutputFolder`; identity: of
    the whole run. part: what it is called in the notes.

    finished: sha256 of the weight files that are done, by any process, and are unchanged; only files
    that `take_up` was asked for are looked at.
    """

    def __init__(
        self, final: str | Path, identity: str, part: Part, inputs: Iterable[Path] = (), fresh: bool = False
    ) -> None:
        self.final = absolute(final)
        self.part, self.identity = part, identity
        self.staging = site(self.final, fresh, tuple(inputs)).staging
        self.notes = LocalNotes(self.staging / NOTES, self._begin)
        self.finished: dict[str, str] = {}
        self.remade: list[str] = []
        self._begun: set[str] = set()

    def __enter__(self) -> LocalParts:
        with writing(self.staging):
            self.staging.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.staging / LOCK, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        self._lock = os.fdopen(handle, "r+b", buffering=0)
        try:
            self._share()
            join_run(self.notes, self.identity, f"remove {self.staging} to delete them")
        except BaseException:
            self._lock.close()
            raise
        self._closing = contextlib.ExitStack()
        self._used = self._closing.enter_context(using())
        self._closing.callback(self._lock.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _share(self) -> None:
        what = "another process is writing this complete output or publishing it"
        taken = OutputError(what, str(self.final), "wait for it to end")
        held = take_lock(self._lock, self.staging, fcntl.LOCK_SH, taken)
        if not held.st_size:
            self._lock.write(LOCK_MARK)
        self._begun = begun_in(os.pread(self._lock.fileno(), held.st_size, 0))

    def _begin(self, path: Path) -> None:
        name = os.path.relpath(path, self.staging)
        if name not in self._begun:
            self._begun.add(name)
            self._lock.write(json.dumps(name).encode() + b"\n")

    def take_up(self, files: Sequence[str]) -> None:
        """Reuse the finished files of an earlier run of these parts; their bytes are read."""
        for file in files:
            known: FileNote | None = read_note(self.notes, note_name(file), FileNote)
            path = self.staging / file
            if known is None:
                continue
            if path.is_file() and content_sha256(path) == known["sha256"]:
                self.finished[file] = known["sha256"]
            else:
                self.remade.append(file)

    @contextlib.contextmanager
    def shard(self, layout: ShardLayout, size: int = BUFFER) -> Iterator[ShardWriter]:
        """See `OutputFolder.shard`. Raises OutputError when another process is writing this file."""
        path = self.staging / (layout.file + ".unfinished")
        with self._only_one(layout.file), writing(self.final / layout.file):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._begin(path)
            self._begin(self.staging / layout.file)
            writer = ShardWriter(path, layout, size)
            try:
                yield writer
                digest = writer.finish()
                self._used.check()
            except Exception:
                path.unlink(missing_ok=True)
                raise
            finally:
                writer.close()
            path.replace(self.staging / layout.file)
            sync((self.staging / layout.file).parent)
            note: FileNote = {"sha256": digest, "size": layout.size, "part": str(self.part), "state": ""}
            write_note(self.notes, note_name(layout.file), note)
            self.finished[layout.file] = digest

    @contextlib.contextmanager
    def _only_one(self, file: str) -> Iterator[IO[bytes]]:
        path = self.staging / NOTES / "locks" / file.replace("/", "%2F")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._begin(path)
            lock = path.open("ab")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                what = f"another process is writing {file}"
                raise OutputError(what, str(self.final), "wait for it, or use other part numbers") from None
            yield lock


class PartsFolder(OutputFolder):
    """An `OutputFolder` that continues from the files that parts have finished; every byte of them is read.

    After `expect` it refuses to begin unless all of them are there, and names whose part is not.
    """

    _expected: tuple[ShardLayout, ...] = ()

    def expect(self, layouts: Sequence[ShardLayout]) -> PartsFolder:
        """Have every file of the layout be there already, as it was written."""
        self._expected = tuple(layouts)
        return self

    def _take_up_journal(self) -> None:
        fresh = self.fresh
        self.fresh = fresh and not self._expected  # what is to be published is not thrown away
        try:
            known = {} if self.fresh else self._noted()
            if known is None:
                super()._take_up_journal()
            elif not self.fresh:
                self._take_up_parts(known)
            else:
                super()._take_up_journal()
        finally:
            self.fresh = fresh
        files = [layout.file for layout in self._expected]
        check_parts(files, {}, self.finished, str(self.final))

    def _noted(self) -> dict[str, FileNote] | None:
        """File -> what its part said of it; None where no parts were begun. Raises OutputError for those of another
        run."""
        notes = LocalNotes(self.staging / NOTES, lambda _: None)
        run: Run | None = read_note(notes, IDENTITY, Run)
        if run is None:
            return None
        if run["identity"] != self.identity:
            what = "there are parts here from another recipe, other inputs or another version"
            raise OutputError(
                what, str(self.staging), "--fresh deletes them, `--finish` with their recipe publishes them"
            )
        known: dict[str, FileNote] = {}
        for name in notes.names(FILES):
            note: FileNote | None = read_note(notes, name, FileNote)
            if note is not None:
                known[file_of(name)] = note
        return known

    def _take_up_parts(self, known: dict[str, FileNote]) -> None:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(self._is_whole, known, known.values()))
        whole = {file: note["sha256"] for (file, note), same in zip(known.items(), found, strict=True) if same}
        check_parts([layout.file for layout in self._expected], known, whole, str(self.final))
        self.finished.update(whole)
        self.remade += [file for file in known if file not in whole]
        self._write_journal()  # before the notes go: a run that is killed here continues from it
        for name in files_below(self.staging):
            if name not in (LOCK, JOURNAL) and name not in whole and is_ours(name, self._begun):
                (self.staging / name).unlink()
        shutil.rmtree(self.staging / NOTES, ignore_errors=True)
        self._begun = set(self.finished)

    def _is_whole(self, file: str, note: FileNote) -> bool:
        path = self.staging / file
        return path.is_file() and not path.is_symlink() and content_sha256(path) == note["sha256"]


def check_parts(files: Sequence[str], known: dict[str, FileNote], whole: Iterable[str], place: str) -> None:
    """Raise OutputError for files that no part has written, or that changed since, and say whose they are."""
    there = set(whole)
    lost = [file for file in files if file not in there]
    if not lost:
        return
    of = max((int(note["part"].partition("/")[2]) for note in known.values()), default=0)
    changed = [file for file in lost if file in known]
    parts = sorted({files.index(file) % of + 1 for file in lost}) if of else []
    again = f"part {few(f'{number}/{of}' for number in parts)}" if of else "every part"
    what = f"{len(lost):,} of {len(files):,} files were not written: {few(lost, 5)}"
    if changed:
        what = (
            f"{len(lost):,} of {len(files):,} files are missing or were changed since they were written: {few(lost, 5)}"
        )
    raise OutputError(what, place, f"run {again} again (`--part`), then --finish")
