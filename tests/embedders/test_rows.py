"""Rows where they lie: data sets of the hub, streamed or not, and tables whose sounds and pictures stay unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from taskmerge.embedders import rows as home
from taskmerge.embedders.overlap import Overlap
from taskmerge.embedders.pairs import StoredItems, read_pairs
from taskmerge.embedders.rows import TableRows, open_rows
from taskmerge.errors import UsageError

KEY = {"path": None}


def pairs(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Pictures of 6 x 1 grey values and their texts, each with a wrong one."""
    return [
        {
            "image": {"bytes": b"P5 6 1 255\n" + bytes([number % 256] * 6), **KEY},
            "text": f"grey {number}", "negative": f"blue {number}",
        }
        for number in range(first, first + count)
    ]  # fmt: skip


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub of one data set, which is read by `datasets` itself; says what was asked of it."""
    for split, count in (("train", 700), ("test", 5)):
        written(tmp_path / f"{split}.parquet", pairs(count))
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset

    def stand_in(name: str, split: str | None = None, streaming: bool = False) -> Any:
        asked.append((name, split, streaming))
        if name != "owner/greys":
            raise FileNotFoundError(f"no data set {name} on the hub")
        files = {one: str(tmp_path / f"{one}.parquet") for one in ("train", "test")}
        return load("parquet", data_files=files, split=split, streaming=streaming, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    return asked


@pytest.mark.parametrize("streaming", ["", ":streaming"])
def test_a_data_set_of_the_hub_by_its_id(hub: list[tuple[Any, ...]], streaming: str) -> None:
    found = read_pairs(f"owner/greys:train{streaming}")
    assert hub == [("owner/greys", "train", bool(streaming))]
    assert list(found.texts) == [f"grey {number}" for number in range(700)]
    assert [list(column) for column in found.negatives] == [[f"blue {number}" for number in range(700)]]
    for row in (0, 255, 256, 699):
        assert np.asarray(found.load(row, row + 1)[0])[0, 0, 0] == row % 256
    if not streaming:
        assert len(read_pairs("owner/greys")) == 5, "of several splits, test"


def test_what_the_hub_does_not_have_is_told(hub: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match=r"owner/none:train: cannot be opened .*no data set owner/none"):
        read_pairs("owner/none:train")
    with pytest.raises(UsageError, match=r"'steaming' is not a valid way to read a data set"):
        read_pairs("owner/greys:train:steaming")
    assert hub == [("owner/none", "train", False)]


def test_a_stream_is_read_once_and_lies_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "HELD_BYTES", 10_000)
    read = []

    def rows() -> Any:
        for row in pairs(600):
            read.append(row)
            yield row

    found = read_pairs(datasets.IterableDataset.from_generator(rows))
    assert isinstance(found.items, StoredItems) and isinstance(found.items._rows, TableRows)
    folder = found.items._rows._folder
    assert folder is not None and (folder.path / "rows.arrow").stat().st_size > 10_000
    assert [np.asarray(item)[0, 0, 0] for item in found.load(250, 260)] == [n % 256 for n in range(250, 260)]
    taken = found.take([599, 3])
    assert list(taken.texts) == ["grey 599", "grey 3"] and np.asarray(taken.load()[1])[0, 0, 0] == 3
    assert len(read) == 600, "each row once"


@pytest.mark.parametrize("held", [1 << 30, 10_000])
def test_pictures_of_a_table_stay_unread_until_they_are_asked_for(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "HELD_BYTES", held)
    path = written(tmp_path / "a.parquet", pairs(600))

    def whole(self: TableRows) -> Any:
        raise AssertionError("every row was read whole")

    monkeypatch.setattr(TableRows, "__iter__", whole)
    found = read_pairs(path)
    assert len(found) == 600 and len(found.negatives[0]) == 600
    with monkeypatch.context() as unread:
        unread.setattr(TableRows, "__getitem__", whole)
        unread.setattr(TableRows, "between", whole)
        others = read_pairs([{"image": {"bytes": b"P5 6 2 255\n" + bytes(12), **KEY}, "text": "new"}])
        assert Overlap.of(others, found) == Overlap([], [], []), "none is as large as these"
    judging = read_pairs(written(tmp_path / "b.parquet", pairs(300, first=500)))
    distinct = {bytes(row["image"]["bytes"]) for row in pairs(600)}
    wanted = [row for row, pair in enumerate(pairs(300, first=500)) if bytes(pair["image"]["bytes"]) in distinct]
    assert Overlap.of(judging, found).items == wanted and len(wanted) > 100


def test_lean_rows_say_lengths_and_what_is_missing() -> None:
    wave = {"array": [0.1, 0.2, 0.3], "sampling_rate": 16000}
    table = [
        {"image": {"bytes": b"abc", "path": None}, "audio": wave, "text": "a", "raw": b"12"},
        {"image": {"bytes": None, "path": "x.png"}, "audio": None, "text": None, "raw": None},
        {"image": None, "audio": {"array": [], "sampling_rate": None}, "text": "c", "raw": b""},
    ]
    rows = TableRows(pyarrow.Table.from_pylist(table).to_batches())
    assert list(rows.lean()) == [
        {"image": {"bytes": 3, "path": None}, "audio": {"array": 3, "sampling_rate": 16000}, "text": "a", "raw": 2},
        {"image": {"bytes": None, "path": "x.png"}, "audio": None, "text": None, "raw": None},
        {"image": None, "audio": {"array": 0, "sampling_rate": None}, "text": "c", "raw": 0},
    ]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_rows_are_read_together_as_one_by_one(size: int) -> None:
    table = pyarrow.Table.from_pylist([{"number": number} for number in range(50)])
    rows = TableRows(table.to_batches(max_chunksize=size))
    for start, stop in ((0, 50), (0, 1), (6, 8), (7, 7), (49, 50), (13, 41)):
        assert rows.between(start, stop) == [rows[number] for number in range(start, stop)]


def test_problems_of_a_table_have_their_row(tmp_path: Path) -> None:
    rows = pairs(4)
    rows[2]["image"] = {"bytes": None, "path": None}
    rows[3] |= {"negative": "Grey 3.", "image": {"bytes": None, "path": "gone.png"}}
    with pytest.raises(UsageError) as error:
        read_pairs(written(tmp_path / "a.parquet", rows))
    said = str(error.value)
    assert "row 3: no image next to the text 'grey 2'" in said and "gone.png' does not exist" in said
    assert "row 4: its negative is the same as its text: 'grey 3'" in said
    assert len(open_rows(tmp_path / "a.parquet")[1]) == 4
