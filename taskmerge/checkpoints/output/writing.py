"""The output folder: written next to its final place, and moved there when it is complete.

A run that was killed leaves ``.NAME.partial`` next to the place of NAME. It holds a journal with the
identity of the run (recipe, inputs, version) and every finished file with its sha256; the next run with the same
identity reads the finished files again and continues from the unchanged ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from taskmerge.checkpoints.formats.held import using
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.hashing import content_sha256, remember
from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.output.record import FILE, LOCK, LOCK_MARK, new_record, render
from taskmerge.checkpoints.output.replacing import absolute, put_in_place, site, sync
from taskmerge.checkpoints.output.shard_writer import BUFFER, ShardWriter
from taskmerge.checkpoints.output.staging import (
    JOURNAL,
    NEXT_JOURNAL,
    SAVED,
    begun_in,
    check_staging,
    files_below,
    is_ours,
    strange_folders,
    take_lock,
)
from taskmerge.errors import CheckpointError, OutputError, few
from taskmerge.whole_files import written_whole
from taskmerge.words.system_errors import writing


class OutputFolder:
    """The files of one output while they are collected; they are published in one rename.

    final: the folder to make. identity: text that is equal only for runs that would write the same bytes; "" for a run
    that cannot be resumed. fresh: replace an output made here and remove an unfinished one. inputs: folders
    and files that are being read, which `final` must not replace. keep: keep what is replaced as `NAME-previous`. Every
    file that is read while it is open must stay as it was: nothing is noted as finished, and nothing published, before
    that has been looked at.

    finished: sha256 of the weight files that are done. remade: finished files of an unfinished run that were no longer
    what had been written.

    Raises OutputError for what `replacing.site` refuses, when an unfinished run with another identity or something of
    other data is in the staging folder, or when another process is writing.
    """

    def __init__(
        self,
        final: str | Path,
        identity: str,
        fresh: bool = False,
        inputs: Iterable[Path] = (),
        *,
        keep: bool = False,
    ) -> None:
        self.final = absolute(final)
        self.identity = identity
        self.fresh = fresh
        self.keep = keep
        self.inputs = tuple(inputs)
        self.finished: dict[str, str] = {}
        self.remade: list[str] = []
        self._states: dict[str, os.stat_result] = {}
        self._begun: set[str] = set()
        self._made: list[Path] = []
        self._unsynced: list[Path] = []
        self.site = site(self.final, fresh, self.inputs, keep=keep)
        self.staging = self.site.staging

    def __enter__(self) -> OutputFolder:
        try:
            self._made = [folder for folder in self.final.parents if not folder.exists()]
            self.staging.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.staging / LOCK, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            self._lock = os.fdopen(handle, "r+b", buffering=0)
        except OSError as error:
            self._remove_made()
            raise OutputError(
                f"cannot be created: {error.strerror}", str(self.final), "choose another output path"
            ) from None
        try:
            taken = OutputError("another process is writing this output", str(self.final), "wait for it to end")
            held = take_lock(self._lock, self.staging, fcntl.LOCK_EX, taken)
            with writing(self.staging):
                self._take_up_names(held.st_size)
                self._take_up_journal()
        except BaseException:
            self._lock.close()
            raise
        self._closing = contextlib.ExitStack()
        self._used = self._closing.enter_context(using())
        self._closing.callback(self._lock.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _take_up_names(self, size: int) -> None:
        """The lock file also says which files were begun: whatever a kill leaves, these are ours."""
        known = os.pread(self._lock.fileno(), size, 0)
        self._begun = begun_in(known)
        if not known.startswith(LOCK_MARK):
            self._lock.truncate(0)
            self._lock.write(LOCK_MARK)
        elif not known.endswith(b"\n"):
            self._lock.write(b"\n")

    def _begin(self, name: str) -> None:
        if name not in self._begun:
            self._begun.add(name)
            self._lock.write(json.dumps(name).encode() + b"\n")

    def _take_up_journal(self) -> None:
        check_staging(self.staging)  # again: now no other process of ours writes here
        journal = self.staging / JOURNAL
        known = _journal(journal) if journal.exists() and not self.fresh else None
        if known is None or known["identity"] == "":
            self._clear()
        elif known["identity"] != self.identity:
            raise OutputError(
                "there is an unfinished run here with another recipe, other inputs or another version",
                str(self.staging),
                "--fresh deletes it",
            )
        else:
            self._keep_what_is_whole(known["finished"])
        self._begun = set(self.finished)  # what a run before began and did not finish is gone: it would be a stranger's
        self._write_journal()

    def _keep_what_is_whole(self, finished: Mapping[str, str]) -> None:
        """Finished files whose bytes are still those that were written; others, and what was only begun, go."""
        for name in files_below(self.staging):
            if name not in (LOCK, JOURNAL) and name not in finished and is_ours(name, self._begun):
                (self.staging / name).unlink()
        for name, digest in finished.items():
            path = self.staging / name
            if path.is_file() and content_sha256(path) == digest:
                self.finished[name] = digest
            elif path.is_file():
                self.remade.append(name)
                path.unlink()

    def _clear(self) -> None:
        """Remove the collected files, and no file of another program."""
        for name in files_below(self.staging):
            if name not in (LOCK, JOURNAL) and is_ours(name, self._begun):
                (self.staging / name).unlink()
        for folder, _, _ in os.walk(self.staging, topdown=False):
            if Path(folder) != self.staging:
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()

    def _write_journal(self) -> None:
        table = {"identity": self.identity, "finished": self.finished}
        with written_whole(self.staging / JOURNAL, self.staging / NEXT_JOURNAL) as path:
            path.write_text(json.dumps(table), "utf-8")
            if self.finished:  # before that there is nothing to go on from
                sync(path)

    def path(self, name: str) -> Path:
        """Return the path at which the file `name` is collected, and make its folders."""
        self._begin(name)
        path = self.staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def saved(self) -> Path:
        """Return a folder, not made yet, for a library to save a model in; `take_over` moves its files."""
        return self.staging / SAVED

    def take_over(self) -> None:
        """Move the files that a library saved into the output."""
        with writing(self.final):
            for name in files_below(self.saved()):
                (self.saved() / name).replace(self.path(name))
                self._unsynced.append(self.staging / name)
            shutil.rmtree(self.saved())

    @contextlib.contextmanager
    def shard(self, layout: ShardLayout, size: int = BUFFER) -> Iterator[ShardWriter]:
        """Open a writer for one weight file, with buffers of `size` bytes.

        On a clean exit, the file is complete, synced and noted as finished.
        """
        with writing(self.final / layout.file):
            path = self.path(layout.file + ".unfinished")
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
        with writing(self.final / layout.file):
            path.replace(self.path(layout.file))
            self.finished[layout.file] = digest
            self._states[layout.file] = self.path(layout.file).stat()
            self._write_journal()

    def add_text(self, name: str, text: str) -> None:
        """Write a small file; it is certain to be on disk once published."""
        with writing(self.final / name):
            path = self.path(name)
            path.write_bytes(text.encode("utf-8"))
        self._unsynced.append(path)

    def add_copy(self, name: str, source: Path) -> None:
        """Copy a side file (contents, not links)."""
        with writing(self.final / name):
            target = self.path(name)
            shutil.copyfile(source, target)
        self._unsynced.append(target)

    def small(self, name: str) -> bytes | None:
        """Return a small file that was added; None for any other."""
        path = self.staging / name
        return path.read_bytes() if name in self._begun and path.is_file() else None

    def publish(self, record: Mapping[str, Any] | None = None) -> list[str]:
        """Write the record and move the finished folder to its final place.

        record: see `record.new_record`. Returns what turned up in the older folder meanwhile, and was left there.
        """
        place = site(self.final, self.fresh, self.inputs, keep=self.keep)
        self._used.check()
        names = sorted(name for name in files_below(self.staging) if name not in (LOCK, JOURNAL, FILE))
        strange = [name for name in names if name not in self._begun and name not in self.finished]
        if strange := [*strange, *strange_folders(self.staging, self._begun)]:
            what = f"files were added to the unfinished output: {few(strange)}"
            raise OutputError(what, str(self.staging), "move these out of it, and run the same command again")
        with writing(self.final):
            outputs = {name: self.finished.get(name) or content_sha256(self.staging / name) for name in names}
            self.add_text(FILE, render({**(record or new_record("model", "save")), "outputs": outputs}))
            folders = [Path(folder) for folder, _, _ in os.walk(self.staging)]
            with ThreadPoolExecutor(8) as threads:  # at once: a file system commits what is asked for together
                list(threads.map(sync, [*self._unsynced, *folders]))
            (self.staging / JOURNAL).unlink()
            try:
                put_in_place(self.staging, place)
            except OSError:
                with contextlib.suppress(OSError):
                    self._write_journal()  # so that the next run continues from here
                raise
        with contextlib.suppress(OSError):  # it is complete
            (self.final / LOCK).unlink()
        remember([(self.final / name, state, self.finished[name]) for name, state in self._states.items()])
        return place.left

    def abandon(self) -> None:
        """Remove everything written: the run has failed, and there is nothing to resume."""
        with contextlib.suppress(OSError):
            self._clear()
            (self.staging / JOURNAL).unlink(missing_ok=True)
            (self.staging / LOCK).unlink()
            self.staging.rmdir()
        self._remove_made()

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


class _Journal(TypedDict):
    identity: str
    finished: dict[str, str]


def _journal(path: Path) -> _Journal:
    try:
        journal: _Journal = read_json(path, _Journal)
    except CheckpointError as error:
        what = f"there is an unfinished run here, and its journal {error.problems[0].what}"
        raise OutputError(what, str(path.parent), "--fresh deletes it") from None
    if any("\0" in name or ".." in Path(name).parts or Path(name).is_absolute() for name in journal["finished"]):
        what = "there is an unfinished run here, and its journal lists files outside the folder"
        raise OutputError(what, str(path.parent), "--fresh deletes it")
    return journal


_SIDES = 16
"""Approximate upper limit of the files of a model in addition to its weights."""


def check_space(final: Path, needed: int, files: int = 1, what: str = "the output") -> None:
    """Refuse to start if the disk has no space for `needed` more bytes, or that many more files of weights.

    what: it is that needs them, for the message. Raises OutputError.
    """
    with writing(final):
        disk = os.statvfs(standing(final))
    free = disk.f_frsize * disk.f_bavail
    if disk.f_files and disk.f_favail < files + _SIDES:  # some file systems count none
        raise OutputError(
            f"{what} needs {files + _SIDES:,} files, the disk can hold only {disk.f_favail:,} more (`df -i`)",
            str(final),
            "remove files or choose another disk",
        )
    if needed > free:
        raise OutputError(
            f"{what} needs {needed:,} bytes, the disk has only {free:,} free",
            str(final),
            "free space or choose another disk",
        )


def standing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists: both are on one disk."""
    return next(parent for parent in (path, *path.parents) if parent.exists())
