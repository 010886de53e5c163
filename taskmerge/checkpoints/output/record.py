"""The records that say that a folder was made here: nothing without one is ever replaced or removed."""

from __future__ import annotations

from pathlib import Path

FUSED = "taskmerge.json"
TRAINED = "taskmerge_training.json"
RECOVERED = "taskmerge_recovery.json"
RECORDS = (FUSED, TRAINED, RECOVERED)


def is_made_here(folder: Path) -> bool:
    """Whether a folder carries one of our records."""
    return any((folder / name).is_file() for name in RECORDS)
