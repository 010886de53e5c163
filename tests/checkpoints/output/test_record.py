"""What a killed process leaves of a record."""

from __future__ import annotations

from pathlib import Path

from taskmerge.checkpoints.output.record import FILE, add_to_record, contents, new_record, read_record, write_record
from taskmerge.whole_files import unfinished_of


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
