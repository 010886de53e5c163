"""Pairs of an item (sound, picture, clip, text) and its text: probes, evaluation sets, recovery data."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.media import load_audio, load_frames, load_picture
from taskmerge.embedders.media_files import read_film, read_picture, read_sound
from taskmerge.embedders.packed import PackedTexts
from taskmerge.embedders.prompts import Role
from taskmerge.embedders.rows import TableRows, lean, open_rows
from taskmerge.errors import Problem, UsageError, clipped
from taskmerge.metrics.retrieval import collapse
from taskmerge.opened import opened
from taskmerge.words.modalities import COLUMNS, TEXT, media_of, modality_of_column
from taskmerge.words.progress import work

ITEM_COLUMNS = (*(column for column in COLUMNS if column != TEXT), "query")
"""Columns with the item of a pair; `query` is a text that searches the text of its pair."""
GROUP = "group"
"""Column of a property that items share in addition to their text: a speaker, a camera."""
SAMPLING_RATE = 16_000
SHOWN = 5
_ROW = "each row must be an item and its text"
_NEGATIVE = re.compile(r"negative(_[0-9]+)?")
_CLOSING = ".,;:!?…。、！？"


@dataclass(frozen=True)
class Pairs:
    """Items and their texts, read but not yet decoded.

    source: what messages call the set.  column: one of `ITEM_COLUMNS`.  texts: one a pair, not empty.
    items: one a pair, as they came: a path (made absolute), an array, a picture, a dict, a text.
    negatives: columns of texts, one a pair, that are not the item's though they look so.
    groups: one a pair, or none: a property that pairs may share in addition to their text, a speaker or a camera.
    """

    source: str
    column: str
    texts: Sequence[str]
    items: Sequence[Any]
    negatives: tuple[Sequence[str], ...] = ()
    groups: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def modality(self) -> str:
        """The modality of the items for the model: "audio", "image", "video" or "text"."""
        return modality_of_column(self.column) if self.column in COLUMNS else TEXT

    @property
    def roles(self) -> tuple[Role, Role]:
        """(role of the items, role of the texts) in training: an item looks for its text, but a page is looked for."""
        return ("document", "query") if self.column == "document" else ("query", "document")

    def distinct(self) -> tuple[list[str], np.ndarray]:
        """Return the distinct texts as first written, in order, and the number of each pair's text (pairs,) int64.

        Texts are one text when they differ only in case, spaces, Unicode form or closing punctuation.
        """
        index, first = self._numbered
        return [self.texts[row] for row in first], index

    @cached_property
    def _numbered(self) -> tuple[np.ndarray, list[int]]:
        """The number of each pair's text (pairs,) int64, and the first row that has it."""
        index = collapse([spelling(text) for text in self.texts])[1]
        return index, np.unique(index, return_index=True)[1].tolist()

    def spellings(self) -> np.ndarray:
        """Number the texts of the pairs and of their negatives, equal for equal texts: (pairs, 1 + negatives) int64."""
        if not self.negatives:
            return self._numbered[0][:, None].copy()
        written = [spelling(text) for column in (self.texts, *self.negatives) for text in column]
        return collapse(written)[1].reshape(1 + len(self.negatives), len(self)).T.copy()

    def load(self, start: int = 0, stop: int | None = None, *, sampling_rate: int = SAMPLING_RATE) -> list[Any]:
        """Return items [start, stop), decoded for encoders.

        Audio: {"array": mono float32, "sampling_rate"}; image: RGB picture; video: (frames, height, width, 3) uint8;
        text as it is. Raises UsageError for an item that is empty, broken or of an impossible sampling rate.
        """
        return [_decode(item, self.modality, sampling_rate) for item in self.items[start:stop]]

    def batches(self, size: int) -> Iterator[tuple[list[Any], list[str]]]:
        """Yield decoded items and their texts, `size` pairs at a time, and report the progress."""
        with work(f"items of {self.source}", len(self)) as told:
            for start in range(0, len(self), size):
                texts = list(self.texts[start : start + size])
                yield self.load(start, start + size), texts
                told.advance(len(texts))

    def take(self, rows: Sequence[int]) -> Pairs:
        """Return the pairs at `rows`, in that order."""
        texts = PackedTexts(self.texts[row] for row in rows)
        stored = self.items.take(rows) if isinstance(self.items, StoredItems) else [self.items[row] for row in rows]
        negatives = tuple(PackedTexts(column[row] for row in rows) for column in self.negatives)
        groups = [self.groups[row] for row in rows] if self.groups else ()
        return replace(self, texts=texts, items=stored, negatives=negatives, groups=groups)

    def files(self) -> list[Path]:
        """Return the files of the items, those of a folder of frames one by one; none for items in memory."""
        found = []
        for item in self.items:
            if isinstance(item, Path):
                found += sorted(item.iterdir()) if item.is_dir() else [item]
        return found

    def sample(self, most: int) -> list[int]:
        """Return rows to check first: all if there are no more than `most`, else that many at random, in order."""
        if len(self) <= most:
            return list(range(len(self)))
        return sorted(np.random.default_rng(0).choice(len(self), most, replace=False).tolist())

    def check(self, most: int | None = None) -> Pairs:
        """Decode items to test them. Raises one UsageError with every broken pair.

        most: how many are looked at; the others are checked when they are used. None: all.
        """
        problems: list[Problem] = []
        for row in range(len(self)) if most is None else self.sample(most):
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
    """Return the form that texts with different spellings share; see `Pairs.distinct`."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(folded.split())
    return words.rstrip(_CLOSING).rstrip() or words


def read_pairs(source: Any, column: str | None = None) -> Pairs:
    """Read pairs from a .jsonl or .parquet file, a `datasets` folder, object or id, a list of dicts, or `Pairs`.

    Each row holds "text" and one item column ("audio", "image", "document", "video" or "query"); column says which when
    there are several. "negative", "negative_1", … are texts that look right and are wrong; "group" may say whose the
    item is, a speaker's say. Relative paths are relative to the file that names them. A data set's id may name its
    split, NAME:train, and be streamed, NAME:train:streaming. Raises UsageError with every problem found in the rows;
    decodes nothing (see `Pairs.check`), and holds no more of a file than its texts.
    """
    if isinstance(source, Pairs):
        return source
    label, rows, folder = open_rows(source)
    if not len(rows):
        raise UsageError("contains no pairs", label, "give a source with at least one pair")
    first = rows[0]
    negatives = tuple(name for name in first if _NEGATIVE.fullmatch(name)) if isinstance(first, Mapping) else ()
    scan = _Scan(label, folder, _column(first, column, label) if isinstance(first, Mapping) else "", negatives)
    texts = PackedTexts(scan.texts(lean(rows)))
    if scan.count:
        more = scan.count - SHOWN
        shown = scan.problems[:SHOWN]
        raise UsageError([*shown, Problem(f"and {more} more problems", label)] if more > 0 else shown)
    against = tuple(PackedTexts(row[name] for row in lean(rows)) for name in negatives)
    pairs = Pairs(label, scan.column, texts, StoredItems(rows, scan.column, folder), against, scan.groups())
    if scan.files:
        opened(*pairs.files(), media=True)
    return pairs


@dataclass
class _Scan:
    """One look at every row. count: of problems, of which the first few are kept. files: whether some items are."""

    label: str
    folder: Path
    column: str
    negatives: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)
    count: int = 0
    files: bool = False
    found: list[str] = field(default_factory=list)
    without: int = 0
    first_without: int = 0

    def groups(self) -> Sequence[str]:
        """The group of every row; none where no row has one. Raises UsageError where only some have."""
        if self.found and self.without:
            what = f"{self.without} of {len(self.found) + self.without} rows have no {GROUP}"
            raise UsageError(what, f"{self.label}: row {self.first_without}", "give every row one, or no row")
        return self.found

    def texts(self, rows: Iterable[Any]) -> Iterator[str]:
        for number, row in enumerate(rows):
            place = f"{self.label}: row {number + 1}"
            if not isinstance(row, Mapping):
                raise UsageError(f"is not a table of columns: {clipped(repr(row), 80)}", place, _ROW)
            for problem in self._problems(row, place):
                self.count += 1
                if len(self.problems) < SHOWN:
                    self.problems.append(problem)
            self._group(row, number + 1)
            text = row.get("text")
            yield text if isinstance(text, str) else ""

    def _group(self, row: Mapping[str, Any], number: int) -> None:
        group = row.get(GROUP)
        if group is not None and str(group).strip():
            self.found.append(str(group))
        else:
            self.first_without = self.first_without or number
            self.without += 1

    def _problems(self, row: Mapping[str, Any], place: str) -> Iterator[Problem]:
        text, item = row.get("text"), _item(row.get(self.column), self.column, self.folder)
        self.files = self.files or isinstance(item, Path)
        if not isinstance(text, str) or not text.strip():
            yield Problem(f"no text next to its {self.column}: {text!r}", place, _ROW)
        if item is None or (isinstance(item, str) and not item.strip()):
            yield Problem(f"no {self.column} next to the text {text!r}", place, f"found: {', '.join(row)}")
        elif self.column == "query" and not isinstance(item, str | Mapping):
            yield Problem(f"its query is not text: {clipped(repr(item), 80)}", place, 'write it as text: "query": "…"')
        elif isinstance(item, Path) and not _exists(item):
            yield Problem(f"{str(item)!r} does not exist", place, f"paths are relative to {self.folder}")
        for name in self.negatives:
            wrong = row.get(name)
            if not isinstance(wrong, str) or not wrong.strip():
                yield Problem(f"no {name} next to the text {text!r}: {wrong!r}", place, "give every row one, or no row")
            elif isinstance(text, str) and spelling(wrong) == spelling(text):
                yield Problem(
                    f"its {name} is the same as its text: {text!r}",
                    place,
                    "remove one of them: a text cannot be both right and wrong",
                )


class StoredItems(Sequence[Any]):
    """The items of rows, each read when it is needed."""

    def __init__(self, rows: Sequence[Any], column: str, folder: Path, numbers: np.ndarray | None = None) -> None:
        """numbers: of the rows that are meant; None: all."""
        self._rows, self._column, self._folder, self._numbers = rows, column, folder, numbers

    def __len__(self) -> int:
        return len(self._rows) if self._numbers is None else len(self._numbers)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            numbers = range(*key.indices(len(self)))
            if self._numbers is None and numbers.step == 1 and isinstance(self._rows, TableRows):
                rows = self._rows.between(numbers.start, numbers.stop)
                return [_item(row.get(self._column), self._column, self._folder) for row in rows]
            return [self[number] for number in numbers]
        number = range(len(self))[key]
        row = self._rows[number if self._numbers is None else int(self._numbers[number])]
        return _item(row.get(self._column), self._column, self._folder)

    def __iter__(self) -> Iterator[Any]:
        if self._numbers is not None:
            yield from (self[number] for number in range(len(self)))
            return
        for row in self._rows:
            yield _item(row.get(self._column), self._column, self._folder)

    def lean(self) -> Iterator[Any]:
        """Yield the items, with only the length of contents that are stored in a table."""
        rows = self._rows
        if not isinstance(rows, TableRows) or self._numbers is not None:
            yield from self
            return
        for row in lean(rows):
            yield _item(row.get(self._column), self._column, self._folder)

    def take(self, rows: Sequence[int]) -> StoredItems:
        """Return the items at `rows`, in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return StoredItems(
            self._rows, self._column, self._folder, chosen if self._numbers is None else self._numbers[chosen]
        )


def _item(item: Any, column: str, folder: Path) -> Any:
    """An item of a row as `Pairs` holds it: what names a file becomes its path."""
    if isinstance(item, Mapping) and item.get("bytes", b"") is None and item.get("array") is None:
        item = item.get("path")  # None where it is neither here nor in a file
    if isinstance(item, str | Path) and column != "query" and str(item).strip():
        return folder / item
    return item


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a folder that may not be read
        return False


def _column(row: Mapping[str, Any], wanted: str | None, label: str) -> str:
    present = [name for name in ITEM_COLUMNS if name in row]
    if wanted is not None:
        if wanted not in row or wanted not in ITEM_COLUMNS:
            raise UsageError(f"there is no column {wanted!r}", label, f"columns: {', '.join(row)}")
        return wanted
    if len(present) != 1:
        what = (
            f"several item columns: {', '.join(present)}" if present else f"there is no item column in {', '.join(row)}"
        )
        raise UsageError(what, label, f"give each row text and one of {', '.join(ITEM_COLUMNS)}")
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
        raise UsageError(
            f"the bytes of {name} are not bytes: {clipped(repr(content), 80)}",
            next_move="store the file's bytes, or give its path",
        )
    media = media_of(modality)
    if media == "sound":
        array, rate = read_sound(content, name)
        return {"array": array, "sampling_rate": rate}
    return read_film(content, name) if media == "film" else read_picture(content, name)
