"""Files of ours are there in their old or their new form, and are written through no link."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from taskmerge.whole_files import of_this_process, unfinished_of, write_whole, written_whole


def test_a_link_in_its_place_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    note = tmp_path / "fuse.json"
    unfinished_of(note).symlink_to(tmp_path / "precious")
    note.symlink_to(tmp_path / "precious")
    write_whole(note, "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert note.read_text() == "new" and not note.is_symlink() and not unfinished_of(note).is_symlink()


def test_what_fails_leaves_the_old_form_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "fuse.json"
    write_whole(note, "old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        write_whole(note, b"new")
    assert note.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["fuse.json"]


def test_what_is_interrupted_leaves_the_old_form(tmp_path: Path) -> None:
    note = tmp_path / "note"
    write_whole(note, "old")
    with pytest.raises(KeyboardInterrupt), written_whole(note) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert note.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["note"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note = tmp_path / "note"
    left, strange = tmp_path / f".note.{gone.pid}", tmp_path / ".note.mine"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        at_work = tmp_path / f".note.{living.pid}"
        for path in (left, strange, at_work):
            path.write_text("half")
        with written_whole(note, of_this_process(note)) as unfinished:  # where other machines write too
            unfinished.write_text("new")
        assert left.exists() and at_work.exists() and strange.exists()
        with written_whole(note) as unfinished:
            unfinished.write_text("newer")
        assert not left.exists() and at_work.exists() and strange.exists() and note.read_text() == "newer"
        living.communicate(b"\n")
