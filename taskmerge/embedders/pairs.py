"""Pairs of an item (sound, picture, clip, text) and its text: probes, evaluation sets, recovery data."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.media import load_audio, load_frames, load_picture
from taskmerge.embedders.media_files import read_film, read_picture, read_sound
from taskmerge.embedders.prompts import Role
from taskmerge.errors import Problem, UsageError, clipped, first_line
from taskmerge.metrics.retrieval import collapse
from taskmerge.opened import opened
from taskmerge.words.extras import require
from taskmerge.words.json_text import parse_json
from taskmerge.words.modalities import COLUMNS, TEXT, media_of, modality_of_column

ITEM_COLUMNS = (*(column for column in COLUMNS if column != TEXT), "query")
"""Columns that hold the item of a pair; `query` is a text that is to find the text beside it."""
GROUP = "group"
"""Column that says what items have in common besides their text: a speaker, a camera."""
SAMPLING_RATE = 16_000
SHOWN = 5
MOST_BYTES = 8 << 30
"""Of a file of pairs, and of what is unpacked from one."""
_FEWER = "split it, or keep sounds and pictures in files of their own"
_ROW = "each row is an item and its text"
_CLOSING = ".,;:!?…。、！？"


@dataclass(frozen=True)
class Pairs:
    """Items and their texts, read but not yet decoded.

    source: what messages call the set.  column: one of `ITEM_COLUMNS`.  texts: one a pair, not empty.
    items: one a pair, as they came: a path (made absolute), an array, a picture, a dict, a text.
    groups: one a pair, or none: what pairs may have in common besides their text, a speaker or a camera.
    """

    source: str
    column: str
    texts: Sequence[str]
    items: Sequence[Any]
    groups: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def modality(self) -> str:
        """What the model sees: "audio", "image", "video" or "text"."""
        return modality_of_column(self.column) if self.column in COLUMNS else TEXT

    @property
    def roles(self) -> tuple[Role, Role]:
        """(role of the items, role of the texts) in training: an item looks for its text, but a page is looked for."""
        return ("document", "query") if self.column == "document" else ("query", "document")

    def distinct(self) -> tuple[list[str], np.ndarray]:
        """The distinct texts as first written, in order, and the place of each pair's text among them (pairs,) int64.

        Texts are one text when they differ only in case, spaces, Unicode form or closing punctuation.
        """
        _, index = collapse([spelling(text) for text in self.texts])
        first: dict[int, str] = {}
        for place, text in zip(index.tolist(), self.texts, strict=True):
            first.setdefault(place, text)
        return list(first.values()), index

    def load(self, start: int = 0, stop: int | None = None, *, sampling_rate: int = SAMPLING_RATE) -> list[Any]:
        """Items [start, stop) decoded as encoders take them.

        Audio: {"array": mono float32, "sampling_rate"}; image: RGB picture; video: (frames, height, width, 3) uint8;
        text as it is. Raises UsageError for an item that is empty, broken or of an impossible sampling rate.
        """
        return [_decode(item, self.modality, sampling_rate) for item in self.items[start:stop]]

    def batches(self, size: int) -> Iterator[tuple[list[Any], list[str]]]:
        """Decoded items and their texts, `size` pairs at a time."""
        for start in range(0, len(self), size):
            yield self.load(start, start + size), list(self.texts[start : start + size])

    def take(self, rows: Sequence[int]) -> Pairs:
        """The pairs at `rows`, in that order."""
        texts, items = [self.texts[row] for row in rows], [self.items[row] for row in rows]
        return Pairs(self.source, self.column, texts, items, [self.groups[row] for row in rows if self.groups])

    def files(self) -> list[Path]:
        """The files that items lie in, those of a folder of frames one by one; none for items in memory."""
        found = []
        for item in self.items:
            if isinstance(item, Path):
                found += sorted(item.iterdir()) if item.is_dir() else [item]
        return found

    def check(self) -> Pairs:
        """Decodes every item once and throws it away; raises one UsageError that names every broken pair."""
        problems: list[Problem] = []
        for row in range(len(self)):
            try:
                self.load(row, row + 1)
            except UsageError as error:
                problems += [
                    Problem(part.what, f"{self.source}: row {row + 1}", part.next_move) for part in error.problems
                ]
        if problems:
            raise UsageError(problems)
        return self


def spelling(text: str) -> str:
    """What texts that are spelled differently have in common; see `Pairs.distinct`."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.rstrip(_CLOSING).rstrip() or words


def read_pairs(source: Any, column: str | None = None) -> Pairs:
    """Pairs from a .jsonl or .parquet file, a `datasets` folder, object or id, a list of dicts, or `Pairs` already.

    Each row holds "text" and one item column ("audio", "image", "document", "video" or "query"); column says which when
    there are several. "group" may say whose the item is, a speaker's say. Relative paths are relative to the file that
    names them. Raises UsageError with every problem found in the rows; decodes nothing (see `Pairs.check`).
    """
    if isinstance(source, Pairs):
        return source
    label, rows, folder = _rows(source)
    if not len(rows):
        raise UsageError("holds no pairs", label)
    if isinstance(rows[0], Mapping):
        column = _column(rows[0], column, label)
    problems: list[Problem] = []
    texts: list[str] = []
    items: list[Any] = []
    for number, row in enumerate(rows):
        place = f"{label}: row {number + 1}"
        if not isinstance(row, Mapping):
            raise UsageError(f"is no table of columns: {clipped(repr(row), 80)}", place, _ROW)
        text, item = row.get("text"), row.get(column)
        if isinstance(item, Mapping) and item.get("bytes", b"") is None and item.get("path"):
            item = item["path"]
        if not isinstance(text, str) or not text.strip():
            problems.append(Problem(f"no text beside its {column}: {text!r}", place, _ROW))
        if item is None or (isinstance(item, str) and not item.strip()):
            problems.append(Problem(f"no {column} beside the text {text!r}", place, f"found: {', '.join(row)}"))
        elif isinstance(item, str | Path) and column != "query":
            item = folder / item
            if not _exists(item):
                problems.append(Problem(f"{str(item)!r} does not exist", place, f"paths are relative to {folder}"))
        texts.append(text or "")
        items.append(item)
    if problems:
        more = len(problems) - SHOWN
        shown = problems[:SHOWN]
        raise UsageError([*shown, Problem(f"and {more} more problems", label)] if more > 0 else shown)
    pairs = Pairs(label, column, texts, items, _groups(rows, label))
    opened(*pairs.files(), media=True)
    return pairs


def _groups(rows: Sequence[Mapping[str, Any]], label: str) -> list[str]:
    """The group of every row; none where no row has one. Raises UsageError where only some have."""
    found = [row.get(GROUP) for row in rows]
    without = [number for number, group in enumerate(found, start=1) if group is None or not str(group).strip()]
    if len(without) == len(found):
        return []
    if without:
        what = f"{len(without)} of {len(found)} rows have no {GROUP}"
        raise UsageError(what, f"{label}: row {without[0]}", "give every row one, or none")
    return [str(group) for group in found]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a folder that may not be read
        return False


def _rows(source: Any) -> tuple[str, Sequence[Mapping[str, Any]], Path]:
    """Label, rows and the folder that relative paths start from."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.exists():
            opened(path)
        if path.suffix in (".jsonl", ".json"):
            return str(source), _jsonl(path), path.parent
        if path.suffix == ".parquet":
            return str(source), _parquet(path), path.parent
        return str(source), _dataset(_open_dataset(str(source))), Path()
    if hasattr(source, "column_names") and hasattr(source, "cast_column"):
        return "data set in memory", _dataset(source), Path()
    if isinstance(source, Sequence):
        return "pairs in memory", source, Path()
    raise UsageError(
        f"{type(source).__name__} is no set of pairs",
        next_move="a .jsonl or .parquet file, a data set, or a list of dicts",
    )


def _jsonl(path: Path) -> Sequence[Mapping[str, Any]]:
    _check_file(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(path)) from None
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        move = f'a line reads {{"audio": path, "text": ...}}, not {clipped(repr(line)[1:], 80)}'
        rows.append(parse_json(line, dict[str, Any], f"{path}:{number}", move, UsageError))
    return rows


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError("is not a file" if path.exists() else f"no file {str(path)!r}", str(path))
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UsageError(f"{size:,} bytes are too much for pairs, at most {MOST_BYTES:,} are read", str(path), _FEWER)


def _parquet(path: Path) -> Sequence[Mapping[str, Any]]:
    """Rows, piece by piece: a few bytes may stand for very many."""
    require("pyarrow")
    import pyarrow.parquet

    _check_file(path)
    rows: list[Mapping[str, Any]] = []
    size = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for piece in file.iter_batches(batch_size=256):
                size += piece.nbytes
                if size > MOST_BYTES:
                    raise UsageError(f"holds more than {MOST_BYTES:,} bytes of pairs", str(path), _FEWER)
                rows += piece.to_pylist()
    except UsageError:
        raise
    except Exception as error:  # what the library raises for a file that makes no sense has no bounds
        what = f"is not a parquet file that can be read: {clipped(first_line(error), 300)}"
        raise UsageError(what, str(path), "get or write the file again") from None
    return rows


def _open_dataset(name: str) -> Any:
    require("datasets")
    import datasets

    if Path(name).is_dir():
        found = datasets.load_from_disk(name)
    else:
        try:
            found = datasets.load_dataset(name)
        except Exception as error:  # the library raises its own, hub and OS errors; all mean the same to the user
            raise UsageError(f"cannot be opened as a file or data set: {error}", name) from error
    if isinstance(found, datasets.DatasetDict):
        splits = list(found)
        if "test" not in splits and len(splits) > 1:
            raise UsageError(f"has several splits and none is test: {', '.join(splits)}", name)
        found = found["test"] if "test" in splits else found[splits[0]]
    return found


def _dataset(found: Any) -> Any:
    """The data set with sound and pictures left encoded: decoding audio there needs libraries we do not require."""
    require("datasets")
    import datasets

    for name, feature in found.features.items():
        if isinstance(feature, datasets.Audio | datasets.Image):
            found = found.cast_column(name, type(feature)(decode=False))
    return found


def _column(row: Mapping[str, Any], wanted: str | None, label: str) -> str:
    present = [name for name in ITEM_COLUMNS if name in row]
    if wanted is not None:
        if wanted not in row or wanted not in ITEM_COLUMNS:
            raise UsageError(f"no column {wanted!r}", label, f"columns: {', '.join(row)}")
        return wanted
    if len(present) != 1:
        what = f"several item columns: {', '.join(present)}" if present else f"no item column in {', '.join(row)}"
        raise UsageError(what, label, f"each row needs text and one of {', '.join(ITEM_COLUMNS)}")
    return present[0]


def _decode(item: Any, modality: str, sampling_rate: int) -> Any:
    if isinstance(item, dict) and item.get("bytes") is not None:
        item = _unpacked(item, modality)
    media = media_of(modality)
    if media == "sound":
        return {"array": load_audio(item, sampling_rate), "sampling_rate": sampling_rate}
    if media == "picture":
        return load_picture(item, "RGB")
    if media == "film":
        return np.stack([np.asarray(frame) for frame in load_frames(item, "RGB")])
    return item


def _unpacked(item: Mapping[str, Any], modality: str) -> Any:
    """What a parquet file or data set stores as {"bytes", "path"}."""
    content, name = item["bytes"], repr(str(item.get("path") or "in the data"))
    if not isinstance(content, bytes):
        raise UsageError(f"the bytes of {name} are none: {clipped(repr(content), 80)}")
    media = media_of(modality)
    if media == "sound":
        array, rate = read_sound(content, name)
        return {"array": array, "sampling_rate": rate}
    return read_film(content, name) if media == "film" else read_picture(content, name)
