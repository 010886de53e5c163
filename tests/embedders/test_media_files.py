"""Sounds, pictures, films and files of pairs that would become too large are refused before they are decoded."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import wave
import zlib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from places import ROOT

from taskmerge.embedders import media_files, rows
from taskmerge.embedders.media import load_audio, load_frames, load_picture
from taskmerge.embedders.media_files import read_film, read_picture, read_sound
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import UsageError

Make = Callable[[int], bytes]


def sound(samples: int, channels: int = 1, rate: int = 16000) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(2 * samples))
    return content.getvalue()


def picture(pixels: int) -> bytes:
    """One row of them."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (pixels, 1)).save(content, "PNG")
    return content.getvalue()


def film(frames: int) -> bytes:
    """Frames of 2 x 1 pixels, all different: equal ones are stored as one."""
    from PIL import Image

    pictures = [Image.new("RGB", (2, 1), (9 * number % 256, number // 28, 5)) for number in range(frames)]
    content = io.BytesIO()
    pictures[0].save(content, "PNG", save_all=True, append_images=pictures[1:])
    return content.getvalue()


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
@pytest.mark.parametrize(
    ("bound", "make", "read", "most", "step"),
    [
        ("MOST_SAMPLES", sound, read_sound, 600, 1),
        ("MOST_SAMPLES", lambda count: sound(count, channels=2), read_sound, 600, 2),
        ("MOST_PIXELS", picture, read_picture, 600, 1),
        ("MOST_FILM_PIXELS", lambda pixels: film(pixels // 2), read_film, 60, 2),
    ],
    ids=["sound", "stereo", "picture", "film"],
)
def test_the_bound_is_where_it_is_said(
    bound: str, make: Make, read: Any, most: int, step: int, as_file: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(media_files, bound, most)

    def source(size: int) -> Path | bytes:
        (tmp_path / "medium").write_bytes(make(size))
        return tmp_path / "medium" if as_file else make(size)

    read(source(most), "x")
    with pytest.raises(
        UsageError, match=f"x is too large: {most + step:,} (samples|pixels), at most {most:,} are allowed"
    ):
        read(source(most + step), "x")


def png(width: int, height: int) -> bytes:
    """A picture of that size by its own words, with a handful of bytes behind them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(9000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (20_000, 10_000), (2**31 - 1, 2**31 - 1)], ids=str)
def test_a_picture_of_gigapixels_by_its_own_words(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"is too large|cannot be read"):
        read_picture(png(*size), "x")


def test_a_sound_that_resampling_would_blow_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours at 1,000 Hz are within the bound, and sixteen times as much at 16,000 Hz."""
    monkeypatch.setattr(media_files, "MOST_SAMPLES", 16_000)
    slow = {"array": np.zeros(1000, np.float32), "sampling_rate": 1000}
    assert len(load_audio(slow, 16_000)) == 16_000
    slow["array"] = np.zeros(1001, np.float32)
    with pytest.raises(UsageError, match="at 16000 Hz is too large: 16,016 samples"):
        load_audio(slow, 16_000)


def test_a_folder_of_frames_is_one_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(10))
    assert len(load_frames(tmp_path, "RGB")) == 5
    monkeypatch.setattr(media_files, "MOST_FILM_PIXELS", 49)
    with pytest.raises(UsageError, match="is too large: 50 pixels"):
        load_frames(tmp_path, "RGB")


def test_a_picture_opened_elsewhere_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(media_files, "MOST_PIXELS", 99)
    lazy = Image.open(io.BytesIO(picture(100)))
    with pytest.raises(UsageError, match="is too large: 100 pixels"):
        load_picture(lazy, "RGB")
    assert getattr(lazy, "_im", None) is None, "not decoded"


# ------------------------------------------------------------------------------------------------------------- pairs


def parquet(path: Path, texts: list[str]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"query": texts, "text": texts}), path)
    return path


def test_a_parquet_file_whose_few_bytes_stand_for_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text, repeated, is stored once; unpacked it goes to the disk, as far as that has room."""
    path = parquet(tmp_path / "p.parquet", ["x" * 1000] * 5000)
    assert path.stat().st_size < 30_000
    monkeypatch.setattr(rows, "HELD_BYTES", 500_000)
    found = read_pairs(path)
    assert len(found) == 5000 and set(found.texts) == {"x" * 1000}
    room = namedtuple("room", "free")
    monkeypatch.setattr(rows.shutil, "disk_usage", lambda _: room(2_000_000))
    with pytest.raises(UsageError, match=r"unpacks to more than 1,0.* bytes, but only 2,000,000 are free"):
        read_pairs(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-200] + b"\xff" * 180 + data[-20:],
        lambda data: data[:40] + bytes(200) + data[240:],
        lambda data: data[:-4],
    ],
)
def test_a_broken_parquet_file_is_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = parquet(tmp_path / "p.parquet", [f"text {number}" for number in range(50)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="is not a parquet file that can be read") as caught:
        read_pairs(path)
    assert caught.value.problems[0].place == str(path) and caught.value.problems[0].next_move


def test_a_file_that_is_one_endless_line_is_not_read(tmp_path: Path) -> None:
    for name, what in (("pairs.jsonl", "pairs.jsonl:2: the line has more than"), ("pairs.parquet", "not a parquet")):
        with (tmp_path / name).open("wb") as file:
            file.write(b"\n")
            file.truncate(1 << 40)
        with pytest.raises(UsageError, match=what):
            read_pairs(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------- pipes


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
@pytest.mark.parametrize("name", ["medium.wav", "medium.png", "pairs.jsonl", "pairs.parquet"])
def test_a_named_pipe_is_no_file(tmp_path: Path, name: str) -> None:
    """Opening one waits for ever."""
    os.mkfifo(tmp_path / name)
    code = (
        "import sys; from pathlib import Path; from taskmerge.errors import UsageError\n"
        "from taskmerge.embedders.media_files import read_picture, read_sound\n"
        "from taskmerge.embedders.pairs import read_pairs\n"
        "path = Path(sys.argv[1])\n"
        "try: read_sound(path, 'x') if path.suffix == '.wav' else read_picture(path, 'x') if path.suffix == '.png' "
        "else read_pairs(path)\n"
        "except UsageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / name)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    assert "is not a file" in done.stdout


def test_rows_of_media_that_are_too_large_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_files, "MOST_SAMPLES", 600)
    for number, samples in enumerate((600, 601, 100)):
        (tmp_path / f"{number}.wav").write_bytes(sound(samples))
    rows = [{"audio": f"{number}.wav", "text": f"a {number}"} for number in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError) as caught:
        read_pairs(tmp_path / "p.jsonl").check()
    (problem,) = caught.value.problems
    assert problem.place == f"{tmp_path / 'p.jsonl'}: row 2" and "601 samples" in problem.what
