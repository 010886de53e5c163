"""Records and notes are there in their old or their new form, and are written through no link."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskmerge.checkpoints.output.record import FILE, add_to_record, contents, new_record, read_record, write_record
from taskmerge.checkpoints.output.whole_files import unfinished_of, write_whole


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


def test_what_a_kill_leaves_of_a_record_is_ours(tmp_path: Path) -> None:
    """It would otherwise stand in the way of replacing the folder."""
    write_record(tmp_path, new_record("model", "save"))
    (tmp_path / "statistics").mkdir()
    (tmp_path / "statistics" / "a.txt").write_bytes(b"x")
    add_to_record(tmp_path, "statistics/a.txt")
    unfinished_of(tmp_path / FILE).write_text('{"half":')
    found = contents(tmp_path)
    assert found.others == [] and set(found.own) == {FILE, f".{FILE}.new", "statistics/a.txt"}
    assert set(read_record(tmp_path)["outputs"]) == {"statistics/a.txt"}
