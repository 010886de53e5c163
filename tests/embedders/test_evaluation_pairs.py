"""Reading pairs: every source gives the same items, every fault is told with its place."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image

from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import UsageError

TONE = (0.3 * np.sin(np.arange(800) / 5)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds/low.wav", TONE, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "sounds/empty.wav", np.zeros(0), 16000)
    return tmp_path


def lines(folder: Path, *rows: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_jsonl_paths_start_at_the_file(folder: Path) -> None:
    pairs = read_pairs(lines(folder, {"audio": "sounds/low.wav", "text": "a low tone"}))
    (item,) = pairs.check().load()
    assert (pairs.column, pairs.modality, list(pairs.texts)) == ("audio", "audio", ["a low tone"])
    assert item["sampling_rate"] == 16000
    assert len(item["array"]) == 1600  # resampled from 8 kHz


def test_parquet_and_data_sets_with_embedded_files_read_alike(folder: Path) -> None:
    stored = io.BytesIO()
    soundfile.write(stored, TONE, 16000, format="WAV", subtype="FLOAT")
    picture = io.BytesIO()
    Image.new("RGB", (5, 4), (255, 0, 0)).save(picture, "PNG")
    sound = {"bytes": stored.getvalue(), "path": None}
    table = pyarrow.Table.from_pylist([{"audio": sound, "text": "tone"}])
    pyarrow.parquet.write_table(table, folder / "pairs.parquet")
    held = datasets.Dataset.from_list([{"audio": sound, "text": "tone"}]).cast_column("audio", datasets.Audio())
    held.save_to_disk(str(folder / "saved"))
    for source in (folder / "pairs.parquet", held, folder / "saved", [{"audio": sound, "text": "tone"}]):
        (item,) = read_pairs(source).load()
        np.testing.assert_array_equal(item["array"], TONE)
    seen = datasets.Dataset.from_list([{"document": {"bytes": picture.getvalue(), "path": None}, "text": "red"}])
    (page,) = read_pairs(seen.cast_column("document", datasets.Image())).load()
    assert (page.size, page.getpixel((0, 0))) == ((5, 4), (255, 0, 0))


def test_paths_inside_parquet_start_at_the_file_too(folder: Path) -> None:
    rows = [{"audio": {"bytes": None, "path": "sounds/low.wav"}, "text": "a low tone"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "pairs.parquet")
    pairs = read_pairs(folder / "pairs.parquet")
    assert len(pairs.load()[0]["array"]) == 1600
    rows[0]["audio"]["path"] = "sounds/gone.wav"  # type: ignore[index]
    with pytest.raises(UsageError, match=r"gone.wav' does not exist"):
        read_pairs(rows)


def test_the_files_behind_the_items(folder: Path) -> None:
    (folder / "film").mkdir()
    for number in (2, 1):
        Image.new("RGB", (5, 4)).save(folder / "film" / f"{number}.png")
    assert read_pairs(lines(folder, {"audio": "sounds/low.wav", "text": "a"})).files() == [folder / "sounds/low.wav"]
    frames = [folder / "film" / "1.png", folder / "film" / "2.png"]
    assert read_pairs(lines(folder, {"video": "film", "text": "a"})).files() == frames
    assert read_pairs([{"query": "who?", "text": "me"}]).files() == []


def test_video_and_query(folder: Path) -> None:
    clip = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    (frames,) = read_pairs([{"video": clip, "text": "dark"}]).load()
    np.testing.assert_array_equal(frames, clip)
    asked = read_pairs([{"query": "who?", "text": "me"}])
    assert (asked.modality, asked.load()) == ("text", ["who?"])


def test_batches_and_take() -> None:
    pairs = Pairs("made", "query", ["a", "b", "c"], ["x", "y", "z"])
    assert list(pairs.batches(2)) == [(["x", "y"], ["a", "b"]), (["z"], ["c"])]
    assert pairs.take([2, 0]).items == ["z", "x"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "contains no pairs"),
        ([{"audio": "sounds/low.wav", "text": ""}], "row 1: no text next to its audio: ''"),
        ([{"audio": "sounds/low.wav", "text": "a"}, {"text": "b"}], "row 2: no audio next to the text 'b'"),
        ([{"audio": "sounds/missing.wav", "text": "a"}], "missing.wav' does not exist"),
        ([{"sound": "x", "text": "a"}], "no item column in sound, text"),
        ([{"audio": "x", "image": "y", "text": "a"}], "several item columns: image, audio"),
        (["{oops"], "pairs.jsonl:1: not valid JSON: Expecting property name"),
        (["[1]"], "pairs.jsonl:1: it must be a table, not a list of 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(folder: Path, rows: list[object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_pairs(lines(folder, *rows))
    assert message in str(error.value)


def test_every_broken_item_is_named_at_once(folder: Path) -> None:
    rows = [
        {"audio": "sounds/low.wav", "text": "fine"},
        {"audio": "sounds/empty.wav", "text": "nothing"},
    ]
    with pytest.raises(UsageError, match=r"row 2: audio .*empty"):
        read_pairs(lines(folder, *rows)).check()
    with pytest.raises(UsageError, match="sampling rate of 3 Hz"):
        read_pairs([{"audio": {"array": TONE, "sampling_rate": 3}, "text": "a"}]).check()
    with pytest.raises(UsageError, match="no sampling rate"):
        read_pairs([{"audio": {"array": TONE}, "text": "a"}]).check()


def test_many_problems_are_counted_not_listed() -> None:
    with pytest.raises(UsageError, match="and 15 more problems"):
        read_pairs([{"audio": TONE, "text": ""}] * 20)


def test_what_is_no_set_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int is not a set of pairs"):
        read_pairs(3)
    with pytest.raises(UsageError, match="no file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="no column 'image'"):
        read_pairs([{"audio": TONE, "text": "a"}], column="image")


@pytest.mark.parametrize("inside", [{}, {"notes.txt": "mine"}, {"state.json": "{"}, {"dataset_dict.json": "[]"}])
def test_a_folder_that_datasets_did_not_save_is_named(folder: Path, inside: dict[str, str]) -> None:
    (folder / "kept").mkdir()
    for name, text in inside.items():
        (folder / "kept" / name).write_text(text)
    with pytest.raises(UsageError, match="is not a folder that `datasets` saved") as raised:
        read_pairs(folder / "kept")
    assert str(folder / "kept") in str(raised.value)
