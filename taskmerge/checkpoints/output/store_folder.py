"""An output in a store: whole or not at all where nothing can be renamed.

Weight files go to their final names, each completely or not at all; the note that a file is finished is under
``.taskmerge-unfinished/``, so does who is writing. Small files come last, the index after them, the record at the very
end; then the marks go. Marks and no record: the output is not finished, and readers refuse it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from taskmerge.checkpoints.formats.held import using
from taskmerge.checkpoints.formats.table import SAFETENSORS
from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.output.leases import Lease
from taskmerge.checkpoints.output.notes import FILES, FileNote, file_of, join_run, note_name, read_note, write_note
from taskmerge.checkpoints.output.parts import check_parts
from taskmerge.checkpoints.output.record import CARD, FILE, Record, new_record, render
from taskmerge.checkpoints.output.shard_writer import BUFFER, ShardWriter
from taskmerge.checkpoints.output.store_sink import StoreSink
from taskmerge.checkpoints.stores.interface import UNFINISHED, Stat, Store, storing
from taskmerge.checkpoints.stores.mirrors import mirrored
from taskmerge.checkpoints.stores.opening import open_store
from taskmerge.errors import OutputError, few
from taskmerge.words.json_text import parse_json
from taskmerge.words.parts import Part
from taskmerge.words.places import StoreUri

_ONCE = "once-"
"""Prefix of the identity of a run that cannot be resumed."""


class StoreNotes:
    """See `notes.Notes`: objects under the folder of marks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.place = f"{store.uri}/{UNFINISHED}"

    def read(self, name: str) -> bytes | None:
        """See `Notes.read`."""

        def read() -> bytes | None:
            stat = self._store.stat(f"{UNFINISHED}/{name}")
            return None if stat is None else self._store.read(f"{UNFINISHED}/{name}", 0, stat.size)

        return storing(self.place, read)

    def write(self, name: str, text: str) -> None:
        """See `Notes.write`."""
        storing(self.place, lambda: self._store.put(f"{UNFINISHED}/{name}", text.encode()))

    def names(self, folder: str) -> list[str]:
        """See `Notes.names`."""
        start = f"{UNFINISHED}/{folder}/"
        found = storing(self.place, self._store.names)
        return sorted(name.removeprefix(f"{UNFINISHED}/") for name in found if name.startswith(start))


class StoreFolder:
    """The counterpart of `writing.OutputFolder` in a store; and of `parts.LocalParts`, if `part` is given.

    final, identity, fresh, inputs: see `OutputFolder`. expected: see `parts.PartsFolder`. A part does not replace an
    earlier output: in a store, that would be incomplete for as long as the parts take.
    """

    def __init__(
        self, final: StoreUri, identity: str, fresh: bool = False, inputs: Iterable[Path] = (), *,
        part: Part | None = None, expected: Sequence[ShardLayout] = (),
    ) -> None:  # fmt: skip
        self.final = final
        self.part = part
        self.finished: dict[str, str] = {}
        self.remade: list[str] = []
        self._identity = identity if identity or part is not None else f"{_ONCE}{uuid4().hex}"
        self._fresh, self._expected = fresh, tuple(expected)
        self._store = open_store(final)
        self.notes = StoreNotes(self._store)
        self._small: dict[str, bytes | Path] = {}
        self._older: list[str] = []
        for place in inputs:
            far = mirrored(place)
            if far is not None and (far.uri.is_below(final) or final.is_below(far.uri)):
                what = f"the output would be in the same place as an input: {far.uri}"
                raise OutputError(what, str(final), "choose another output uri")

    def __enter__(self) -> StoreFolder:
        self._closing = contextlib.ExitStack()
        self._used = self._closing.enter_context(using())
        try:
            there = self._look()
            self._take_up_run(there)
            if self.part is None:
                self._closing.enter_context(Lease(self._store))
                self._take_up_files(there)
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _look(self) -> Mapping[str, Stat]:
        """The existing objects. Raises OutputError for those that may not be replaced."""
        there = storing(self.final, self._store.names)
        marked = any(name.startswith(f"{UNFINISHED}/") for name in there)
        if FILE in there:
            if not self._fresh or self.part is not None:
                move = "remove it first, or write to another uri" if self.part else "--fresh replaces it"
                raise OutputError("it already contains a model that taskmerge made", str(self.final), move)
            self._older = self._recorded(there)
            strange = [name for name in there if name not in self._older and not name.startswith(f"{UNFINISHED}/")]
            if strange:
                what = f"would be replaced, but contains files that taskmerge did not write: {few(strange)}"
                raise OutputError(what, str(self.final), "move these out of it, or choose another output uri")
        elif there and not marked:
            what = f"is not empty, and was not made by taskmerge: {few(there, 3)}"
            raise OutputError(what, str(self.final), "choose another output uri")
        return there

    def _recorded(self, there: Mapping[str, Stat]) -> list[str]:
        text = storing(self.final, lambda: self._store.read(FILE, 0, there[FILE].size))
        record: Record = parse_json(text, Record, f"{self.final}/{FILE}")
        return [FILE, CARD, *record["outputs"]]

    def _take_up_run(self, there: Mapping[str, Stat]) -> None:
        known = self.notes.read("run.json") if any(name.startswith(f"{UNFINISHED}/") for name in there) else None
        if known is not None and self.part is None:
            began = str(parse_json(known, dict[str, str], self.notes.place).get("identity", ""))
            other = began != self._identity
            if began.startswith(_ONCE) or (other and self._fresh and not self._expected):
                self._clear(there)
        join_run(self.notes, self._identity, f"remove {self.notes.place}/, or use --fresh to delete them")

    def _clear(self, there: Mapping[str, Stat]) -> None:
        """Forget an unfinished run, and remove what it finished."""
        marks = [name for name in there if name.startswith(f"{UNFINISHED}/") and "/leases/" not in name]
        files = [file_of(name) for name in marks if name.startswith(f"{UNFINISHED}/{FILES}/")]
        storing(self.final, lambda: self._store.remove([*files, *marks]))

    def _take_up_files(self, there: Mapping[str, Stat]) -> None:
        known = self._known(there)
        whole = {file: note["sha256"] for file, note in known.items() if _is_same(note, there.get(file))}
        check_parts([layout.file for layout in self._expected], known, whole, str(self.final))
        self.finished = whole
        self.remade = [file for file in known if file not in whole]
        if FILE in there:  # from here on it counts as incomplete
            storing(self.final, lambda: self._store.remove([FILE]))

    def _known(self, there: Mapping[str, Stat]) -> dict[str, FileNote]:
        found: dict[str, FileNote] = {}
        for name in there:
            if name.startswith(f"{UNFINISHED}/{FILES}/"):
                note: FileNote | None = read_note(self.notes, name.removeprefix(f"{UNFINISHED}/"), FileNote)
                if note is not None:
                    found[file_of(name)] = note
        return found

    def take_up(self, files: Sequence[str]) -> None:
        """See `LocalParts.take_up`; the store says whether a file is the version that was written."""
        for file in files:
            note: FileNote | None = read_note(self.notes, note_name(file), FileNote)
            if note is None:
                continue
            if _is_same(note, storing(self.final, lambda file=file: self._store.stat(file))):  # type: ignore[misc]
                self.finished[file] = note["sha256"]
            else:
                self.remade.append(file)

    @contextlib.contextmanager
    def shard(self, layout: ShardLayout, size: int = BUFFER) -> Iterator[ShardWriter]:
        """See `OutputFolder.shard`."""
        with Lease(self._store, layout.file) if self.part is not None else contextlib.nullcontext():
            sink = StoreSink(self._store, layout.file, layout.size)
            writer = ShardWriter(StoreUri(f"{self.final}/{layout.file}"), layout, size, sink)
            try:
                yield writer
                self._used.check()
                digest = writer.finish()
            finally:
                writer.close()
            note: FileNote = {
                "sha256": digest, "size": layout.size, "part": str(self.part or "1/1"), "state": sink.state,
            }  # fmt: skip
            write_note(self.notes, note_name(layout.file), note)
            self.finished[layout.file] = digest

    def add_text(self, name: str, text: str) -> None:
        """Keep a small file for the end."""
        self._small[name] = text.encode()

    def add_copy(self, name: str, source: Path) -> None:
        """Keep a copy of a side file for the end."""
        self._small[name] = source

    def small(self, name: str) -> bytes | None:
        """See `OutputFolder.small`."""
        kept = self._small.get(name)
        return kept.read_bytes() if isinstance(kept, Path) else kept

    def publish(self, record: Mapping[str, Any] | None = None) -> list[str]:
        """Write the small files, the index, and the record; then the output is there. See `OutputFolder.publish`."""
        self._used.check()
        outputs = dict(self.finished)
        for name in sorted(self._small, key=lambda name: (name.rpartition("/")[2] == SAFETENSORS.index, name)):
            kept = self._small[name]
            data = kept.read_bytes() if isinstance(kept, Path) else kept
            outputs[name] = hashlib.sha256(data).hexdigest()
            storing(self.final, lambda name=name, data=data: self._store.put(name, data))  # type: ignore[misc]
        there = storing(self.final, self._store.names)
        strange = [
            name for name in there
            if name not in outputs and name not in self._older and not name.startswith(f"{UNFINISHED}/")
        ]  # fmt: skip
        if strange:
            what = f"files were added to the unfinished output: {few(strange)}"
            raise OutputError(what, str(self.final), "move these out of it, and run the same command again")
        text = render({**(record or new_record("model", "save")), "outputs": outputs})
        storing(self.final, lambda: self._store.put(FILE, text.encode()))
        marks = [name for name in there if name.startswith(f"{UNFINISHED}/")]
        gone = [name for name in self._older if name not in outputs and name != FILE and name in there]
        storing(self.final, lambda: self._store.remove([*gone, *marks]))
        return []

    def abandon(self) -> None:
        """See `OutputFolder.abandon`: remove what was written, and the marks."""
        with contextlib.suppress(Exception):
            self._clear(self._store.names())


def _is_same(note: FileNote, stat: Stat | None) -> bool:
    return stat is not None and stat.size == note["size"] and stat.state == note["state"]
