"""The output folder: written beside its final place, and there whole or not at all.

A run that was killed leaves ``.NAME.partial`` beside the place where NAME would be. It holds a journal with the
identity of the run (recipe, inputs, version), every finished file with its sha256 and the names of all others that were
begun; the next run with the same identity reads the finished files again and goes on from those that are as they were.
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

from taskmerge.checkpoints.formats.held import using
from taskmerge.checkpoints.hashing import content_sha256
from taskmerge.checkpoints.output.journal import JOURNAL, read_journal, strangers
from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.output.shard_writer import BUFFER, ShardWriter
from taskmerge.errors import OutputError, few
from taskmerge.words.places import output_path

LOCK = ".lock"


class OutputFolder:
    """Collects the files of one output and publishes them in one rename.

    final: the folder to make. identity: text that is equal only for runs that would write the same bytes; "" for a run
    that cannot be gone on with. fresh: replace an existing output and throw away an unfinished one. inputs: folders
    that are being read, which `final` must not replace. Every file that is read while it is open must stay as it was:
    nothing is noted as finished, and nothing published, before that has been looked at.

    finished: sha256 of the weight files that are done. side_files: of what was added beside them. remade: finished
    files of an unfinished run that were no longer what had been written.

    Raises OutputError when `final` exists (without fresh) or holds an input, when an unfinished run with another
    identity lies there, or when another process is writing.
    """

    def __init__(self, final: Path, identity: str, fresh: bool = False, inputs: Iterable[Path] = ()) -> None:
        self.final = Path.cwd() / output_path(final)
        self.staging = self.final.parent / f".{self.final.name}.partial"
        self.identity = identity
        self.fresh = fresh
        self.finished: dict[str, str] = {}
        self.remade: list[str] = []
        self._begun: set[str] = set()
        self._noted: dict[str, str] = {}
        self.side_files: dict[str, str] = {}
        self._made: list[Path] = []
        self._unsynced: list[Path] = []
        check_free(self.final, fresh)
        check_apart(self.final, inputs)

    def __enter__(self) -> OutputFolder:
        try:
            self._made = [folder for folder in self.final.parents if not folder.exists()]
            self.staging.mkdir(parents=True, exist_ok=True)
            self._lock = (self.staging / LOCK).open("w")
        except OSError as error:
            self._remove_made()
            raise OutputError(
                f"cannot be made: {error.strerror}", str(self.final), "choose another output path"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(self._lock.fileno())
            if not os.path.samestat(held, (self.staging / LOCK).stat()):  # published since it was opened
                raise OSError
        except OSError:
            self._lock.close()
            raise OutputError("another process is writing this output", str(self.final), "wait for it to end") from None
        try:
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

    def check_inputs(self) -> None:
        """Raise CheckpointError for a file that was read from and is no longer as it was."""
        for file in list(self._used):
            file.check()

    def _take_up_journal(self) -> None:
        journal = self.staging / JOURNAL
        if self.fresh:
            self._clear()
        elif journal.exists():
            table = read_journal(journal)
            if table["identity"] == "":
                self._clear()
            elif table["identity"] != self.identity:
                raise OutputError(
                    "an unfinished run with another recipe, other inputs or another version lies here",
                    str(self.staging),
                    "--fresh throws it away",
                )
            self._begun = set(table.get("begun", [])) | {JOURNAL + ".new"}
            self._refuse_strangers(set(table["finished"]) | self._begun)
            self._keep_what_is_whole(table["finished"])
        else:
            self._clear()
        self._write_journal()

    def _refuse_strangers(self, own: set[str]) -> None:
        """What lies in an unfinished output and was not written by its run would be published with it."""
        strange = strangers(self.staging, own | {JOURNAL, LOCK})
        if strange:
            raise OutputError(
                f"holds what its run did not write: {few(strange)}",
                str(self.staging),
                "move it away and run it again; --fresh throws away the whole folder",
            )

    def _keep_what_is_whole(self, finished: Mapping[str, str]) -> None:
        """Finished files whose bytes are still those that were written; others, and what was only begun, go."""
        for name in sorted(self._begun - set(finished)):
            (self.staging / name).unlink(missing_ok=True)
        self._begun = set()
        for name, digest in finished.items():
            path = self.staging / name
            if path.is_file() and content_sha256(path) == digest:
                self.finished[name] = digest
            elif path.is_file():
                self.remade.append(name)
                path.unlink()

    def _clear(self) -> None:
        for path in self.staging.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _write_journal(self) -> None:
        table = {"identity": self.identity, "finished": self.finished, "begun": sorted(self._begun)}
        path = self.staging / f"{JOURNAL}.new"
        path.write_text(json.dumps(table), "utf-8")
        if self.finished != self._noted:  # what is only begun need not be known after a power cut
            _sync(path)
            self._noted = dict(self.finished)
        path.replace(self.staging / JOURNAL)

    def path(self, name: str) -> Path:
        """Where the file `name` is being collected; notes that it is begun, and makes its folders."""
        if name not in self._begun:
            self._begun.add(name)
            self._write_journal()
        path = self.staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def shard(self, layout: ShardLayout, size: int = BUFFER) -> Iterator[ShardWriter]:
        """A writer for one weight file, with buffers of `size` bytes; on a clean exit the file is complete, synced and
        noted as finished."""
        path = self.path(layout.file + ".unfinished")
        writer = ShardWriter(path, layout, size)
        try:
            yield writer
            digest = writer.finish()
            self.check_inputs()
        except Exception:
            path.unlink(missing_ok=True)
            raise
        finally:
            writer.close()
        path.replace(self.path(layout.file))
        self.finished[layout.file] = digest
        self._write_journal()

    def add_text(self, name: str, text: str) -> None:
        """Writes a small file; on disk for sure once published."""
        path = self.path(name)
        path.write_bytes(text.encode("utf-8"))
        self.side_files[name] = content_sha256(path)
        self._unsynced.append(path)

    def add_copy(self, name: str, source: Path) -> None:
        """Copies a side file (contents, not links)."""
        target = self.path(name)
        shutil.copyfile(source, target)
        self.side_files[name] = content_sha256(target)
        self._unsynced.append(target)

    def publish(self) -> None:
        """Moves the finished folder to its final place."""
        check_free(self.final, self.fresh)
        self.check_inputs()
        self._refuse_strangers(set(self.finished) | set(self.side_files))
        folders = [Path(folder) for folder, _, _ in os.walk(self.staging)]
        with ThreadPoolExecutor(8) as threads:  # at once: a file system commits what is asked for together
            list(threads.map(_sync, [*self._unsynced, *folders]))
        old = self.final.parent / f".{self.final.name}.replaced"
        if self.final.exists():
            if old.exists():
                shutil.rmtree(old)
            self.final.replace(old)
        (self.staging / JOURNAL).unlink()
        self.staging.replace(self.final)
        (self.final / LOCK).unlink()
        _sync(self.final.parent)
        if old.exists():
            shutil.rmtree(old)

    def abandon(self) -> None:
        """Removes everything written: the run has failed for good and there is nothing worth going on from."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self._remove_made()

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_free(final: Path, fresh: bool) -> None:
    """Refuses an existing output, unless it is an empty folder or is to be replaced."""
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise OutputError("exists and is no folder", str(final), "choose another output path")
    if final.exists() and any(final.iterdir()) and not fresh:
        raise OutputError("the output folder already exists", str(final), "--fresh replaces it, --out writes elsewhere")


def check_apart(final: Path, inputs: Iterable[Path]) -> None:
    """Refuses an output that would take the place of an input, or of a folder that an input lies in."""
    for folder in inputs:
        if folder.resolve().is_relative_to(final.resolve()):
            raise OutputError(f"the output would replace an input: {folder}", str(final), "choose another output path")


def check_space(final: Path, needed: int) -> None:
    """Refuses to start when the disk cannot hold `needed` more bytes."""
    existing = next(parent for parent in (final, *final.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OutputError(
            f"the output needs {needed:,} bytes, the disk has {free:,} free",
            str(final),
            "free space or choose another disk",
        )


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
