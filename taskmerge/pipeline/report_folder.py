"""The folder of notes and the report next to a recipe's models: made here, or not written to."""

from __future__ import annotations

from pathlib import Path

from taskmerge.checkpoints.output.record import UNFINISHED, is_made_here, new_record, write_record
from taskmerge.checkpoints.output.replacing import ELSEWHERE
from taskmerge.errors import OutputError
from taskmerge.words.system_errors import writing


def check_report(folder: Path) -> None:
    """Raise OutputError if other data is in the place of notes and the report."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError("should contain the report, but exists and is not a folder", str(folder), ELSEWHERE)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there - {UNFINISHED} and not is_made_here(folder, "report"):
        raise OutputError("should contain the report, but was not made by taskmerge", str(folder), ELSEWHERE)


def claim_report(folder: Path) -> None:
    """Make the folder, with the record that marks it as ours. Raises OutputError as `check_report`."""
    if is_made_here(folder, "report"):
        return
    check_report(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, new_record("report", "run"))
