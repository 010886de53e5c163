"""Rows of pairs in their files: a line of a .jsonl, a row of a parquet file or data set, read when it is needed."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from taskmerge.embedders.byte_files import ByteFile, TemporaryFolder
from taskmerge.errors import UsageError, clipped, first_line
from taskmerge.opened import opened
from taskmerge.words.extras import require
from taskmerge.words.json_text import parse_json

Row = Mapping[str, Any]
MOST_LINE = 256 << 20
"""Bytes of one line."""
MOST_BYTES = 8 << 30
"""Of one piece of a table, unpacked."""
HELD_BYTES = 64 << 20
"""A table that is unpacked to more than this is kept on the disk, not in memory."""
_PIECE = 256
_FEWER = "keep sounds and pictures in separate files"


def open_rows(source: Any) -> tuple[str, Sequence[Any], Path]:
    """Return what messages call the source, its rows, and the folder that relative paths start from.

    Args:
        source: a .jsonl or .parquet file, a `datasets` folder, id or object (streaming ones too), or a list of rows.

    Raises:
        UsageError: for what is none of these, or cannot be read.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.exists():
            opened(path)
        if path.suffix in (".jsonl", ".json"):
            return str(source), LineRows(path), path.parent
        if path.suffix == ".parquet":
            return str(source), _parquet(path), path.parent
        return str(source), _dataset(_open_dataset(str(source)), str(source)), Path()
    if hasattr(source, "column_names") and hasattr(source, "cast_column"):
        return "data set in memory", _dataset(source, "data set in memory"), Path()
    if isinstance(source, Sequence):
        return "pairs in memory", source, Path()
    raise UsageError(
        f"{type(source).__name__} is not a set of pairs",
        next_move="give a .jsonl or .parquet file, a data set, or a list of dicts",
    )


class LineRows(Sequence[Row]):
    """The lines of a .jsonl file, of which only their places are held. Empty lines are none."""

    def __init__(self, path: Path) -> None:
        _check_file(path)
        self.path = path
        starts, numbers = array("q"), array("q")
        position = 0
        try:
            with path.open("rb") as file:
                for number, line in _lines(file, path):
                    if line.strip():
                        starts.append(position)
                        numbers.append(number)
                    position += len(line)
            starts.append(position)
            self._file = ByteFile(path)
        except OSError as error:
            raise UsageError(
                f"cannot be read: {error.strerror}", str(path), "check that the file exists and that you may read it"
            ) from None
        self._starts, self._numbers = starts, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        number = range(len(self))[number]
        start = self._starts[number]  # empty lines may follow
        line = self._file.read(start, self._starts[number + 1] - start).strip(b"\n")
        return self._parsed(bytes(line), self._numbers[number])

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for number, line in _lines(file, self.path):
                if line.strip():
                    yield self._parsed(line, number)

    def _parsed(self, line: bytes, number: int) -> Row:
        line = line.rstrip(b"\n")
        move = f'a line reads {{"audio": path, "text": ...}}, not {clipped(repr(line)[1:], 80)}'
        found: Row = parse_json(line, dict[str, Any], f"{self.path}:{number}", move, UsageError)
        return found


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every line. Raises UsageError for one that is too long to be held."""
    number = 0
    while line := file.readline(MOST_LINE + 1):
        number += 1
        if len(line) > MOST_LINE:
            what = f"the line has more than {MOST_LINE:,} bytes, which is too long for a pair"
            raise UsageError(what, f"{path}:{number}", _FEWER)
        yield number, line


class TableRows(Sequence[Row]):
    """Rows of Arrow record batches, in memory or in a mapped file."""

    def __init__(self, batches: Sequence[Any], folder: TemporaryFolder | None = None) -> None:
        """batches: `pyarrow.RecordBatch` of one schema.  folder: that they are mapped from."""
        self._batches, self._folder = batches, folder
        self._ends = np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: Any) -> Any:
        number = range(len(self))[number]
        place = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[place - 1]) if place else 0
        return self._batches[place].slice(number - first, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches:
            yield from batch.to_pylist()

    def between(self, start: int, stop: int) -> list[Row]:
        """Return rows [start, stop), read together."""
        found: list[Row] = []
        place = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop and place < len(self._batches):
            first = int(self._ends[place - 1]) if place else 0
            last = min(stop, int(self._ends[place]))
            found += self._batches[place].slice(start - first, last - start).to_pylist()
            start, place = last, place + 1
        return found

    def lean(self) -> Iterator[Row]:
        """Yield every row, with the length of bytes and of lists in their place: sounds and pictures are not read."""
        import pyarrow

        for batch in self._batches:
            columns = [_lengths(column) for column in batch.columns]
            yield from pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()


def lean(rows: Sequence[Any]) -> Iterable[Any]:
    """Return rows for inspection, without the contents of sounds and pictures that are stored in a table."""
    return rows.lean() if isinstance(rows, TableRows) else rows


def _lengths(column: Any) -> Any:
    """An Arrow array with lengths in place of bytes and lists, null where these are; the same of fields of structs."""
    import pyarrow
    from pyarrow import compute, types

    kind = column.type
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return compute.binary_length(column)
    if types.is_list(kind) or types.is_large_list(kind):
        return compute.list_value_length(column)
    if types.is_struct(kind) and kind.num_fields:
        names = [kind.field(place).name for place in range(kind.num_fields)]
        parts = [_lengths(part) for part in column.flatten()]
        return pyarrow.StructArray.from_arrays(parts, names=names, mask=column.is_null())
    return column


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(
            "is not a file" if path.exists() else f"there is no file {str(path)!r}",
            str(path),
            "check the path",
        )


def _parquet(path: Path) -> TableRows:
    """Rows of a parquet file. Its pages cannot be entered in the middle: a large one is unpacked to the disk."""
    require("pyarrow")
    import pyarrow.parquet

    _check_file(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _kept(file.iter_batches(batch_size=_PIECE), str(path))
    except UsageError:
        raise
    except Exception as error:  # what the library raises for a file that makes no sense has no bounds
        what = f"is not a parquet file that can be read: {clipped(first_line(error), 300)}"
        raise UsageError(what, str(path), "get or write the file again") from None


def _kept(batches: Iterable[Any], label: str) -> TableRows:
    """Batches as rows: in memory while they are few bytes, else in a file that this process maps and leaves none of."""
    import pyarrow

    held: list[Any] = []
    size, pieces = 0, iter(batches)
    for batch in pieces:
        held.append(batch)
        size += batch.nbytes
        if size > HELD_BYTES:
            break
    else:
        return TableRows(held)
    folder = TemporaryFolder("rows")
    place = folder.path / "rows.arrow"
    free = shutil.disk_usage(folder.path).free
    with pyarrow.OSFile(str(place), "wb") as sink, pyarrow.ipc.new_file(sink, held[0].schema) as writer:
        for batch in held:
            writer.write_batch(batch)
        del held
        for batch in pieces:
            size += batch.nbytes
            if size > free // 2 or batch.nbytes > MOST_BYTES:
                what = f"unpacks to more than {size:,} bytes, but only {free:,} are free in {folder.path.parent}"
                raise UsageError(what, label, f"{_FEWER}, or set TMPDIR to a larger disk")
            writer.write_batch(batch)
    reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(place)))
    return TableRows([reader.get_batch(number) for number in range(reader.num_record_batches)], folder)


def _open_dataset(name: str) -> Any:
    """A folder of `datasets`, or an id of the hub: NAME, NAME:SPLIT, NAME:SPLIT:streaming."""
    require("datasets")
    import datasets

    if Path(name).is_dir():
        try:
            return _one_split(datasets.load_from_disk(name), name)
        except UsageError:
            raise
        except Exception as error:  # json's, pyarrow's and the library's own errors: whatever the folder holds
            what = f"is not a folder that `datasets` saved: {clipped(first_line(error), 300)}"
            raise UsageError(
                what, name, "give the path of the file of rows in it, or save the data set with save_to_disk"
            ) from None
    repository, _, rest = name.partition(":")
    split, _, mode = rest.partition(":")
    if mode not in ("", "streaming"):
        raise UsageError(
            f"{mode!r} is not a valid way to read a data set", name, "write NAME, NAME:SPLIT or NAME:SPLIT:streaming"
        )
    try:
        found = datasets.load_dataset(repository, split=split or None, streaming=mode == "streaming")
    except Exception as error:  # the library raises its own, hub and OS errors; all mean the same to the user
        raise UsageError(
            f"cannot be opened as a file or data set: {error}", name, "check the path or the id of the data set"
        ) from error
    return _one_split(found, name)


def _one_split(found: Any, name: str) -> Any:
    if isinstance(found, Mapping):
        splits = list(found)
        if "test" not in splits and len(splits) > 1:
            raise UsageError(
                f"has several splits, but none called test: {', '.join(splits)}", name, f"write {name}:{splits[0]}"
            )
        found = found["test"] if "test" in splits else found[splits[0]]
    return found


def _dataset(found: Any, label: str) -> Any:
    """The data set with sound and pictures left encoded: decoding audio there needs libraries we do not require.

    What is streamed is written to the disk once, since training draws from all of it.
    """
    require("datasets")
    import datasets

    for name, feature in (found.features or {}).items():
        if isinstance(feature, datasets.Audio | datasets.Image):
            found = found.cast_column(name, type(feature)(decode=False))
    if isinstance(found, datasets.IterableDataset):
        return _kept(_batches(found), label)
    return found


def _batches(stream: Iterable[Row]) -> Iterator[Any]:
    import pyarrow

    schema, rows = None, []
    for row in stream:
        rows.append(row)
        if len(rows) == _PIECE:
            batch = pyarrow.RecordBatch.from_pylist(rows, schema=schema)
            schema, rows = batch.schema, []
            yield batch
    if rows:
        yield pyarrow.RecordBatch.from_pylist(rows, schema=schema)
