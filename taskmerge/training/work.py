"""The folder of a training's own checkpoints: used, and cleared, only as far as it was made here."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from taskmerge.errors import OutputError, few
from taskmerge.words.system_errors import writing

MARK = ".taskmerge-work"
TRAINED_FILE = "trained.safetensors"
"""In every checkpoint of ours: the tensors that were trained."""
OPTIMIZER_FILE, SCHEDULER_FILE, LOSSES_FILE = "optimizer.pt", "scheduler.pt", "losses.json"
CHECKPOINTS = "checkpoint-*"
CHECKPOINTS_KEPT = 2
"""By the trainer: the latest, and the best."""
_LOGS = ("runs", "eval")


def check_work(folder: Path) -> None:
    """Refuse a folder with checkpoints of other programs that the trainer would remove.

    Raises OutputError naming them.
    """
    move = "move them away, or choose another folder"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError("should contain checkpoints, but is not a folder", str(folder), move)
    if (folder / MARK).is_file():
        return
    strange = [path.name for path in sorted(folder.glob(CHECKPOINTS)) if not (path / TRAINED_FILE).is_file()]
    if strange:
        raise OutputError(f"contains checkpoints that taskmerge did not write: {few(strange)}", str(folder), move)


def claim_work(folder: Path) -> None:
    """Make the folder, or accept one that passes `check_work`, and mark it."""
    check_work(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()


def clear_work(folder: Path) -> None:
    """Remove the checkpoints of a marked folder, and the folder if nothing else is in it."""
    if folder.is_symlink() or not (folder / MARK).is_file():
        return
    for path in [*folder.glob(CHECKPOINTS), *(folder / name for name in _LOGS)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    (folder / MARK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
