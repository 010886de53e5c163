"""A task vector on disk: the folder that `extract` writes, recognised and opened as `StateDict` of deltas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.reading import StoredStateDict, open_stored
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.checkpoints.vectors.compressed import restore
from taskmerge.errors import CheckpointError, few

VECTOR_FILE = "task_vector.json"


class _Report(TypedDict):
    bytes: int
    dense_bytes: int
    relative_error: float


class _VectorFields(TypedDict, total=False):
    form: str
    shapes: dict[str, list[int]]
    tables: list[str]
    report: _Report


class VectorMarks(_VectorFields):
    """A task_vector.json: which tensors are the specialist's own, and how the deltas are stored."""

    own: list[str]


def is_task_vector(folder: Path) -> bool:
    """Return whether a folder was written by `extract`: its numbers are deltas, not a model."""
    return (folder / VECTOR_FILE).is_file()


def open_task_vector(path: str | Path) -> StoredDeltas:
    """Open a folder of deltas, and of the specialist's own tensors, by the names of the base they were taken from.

    Raises: CheckpointError when it is none.
    """
    stored = open_stored(path)
    if stored.beside.folder is None or not is_task_vector(stored.beside.folder):
        raise CheckpointError(
            "a checkpoint, not a task vector", str(path), "make a task vector of it: taskmerge extract BASE MODEL"
        )
    place = stored.beside.folder / VECTOR_FILE
    marks: VectorMarks = read_json(place, VectorMarks, "extract the task vector again")
    named = (*marks["own"], *marks.get("tables", ()))
    if lost := [name for name in named if name not in stored.tensors]:
        raise CheckpointError(f"lists tensors that are missing: {few(lost)}", str(place), "extract it again")
    return StoredDeltas(stored, marks)


class StoredDeltas(StateDict):
    """`StateDict` of a task vector's folder; compressed deltas as float64.

    own: the specialist's own tensors, whole. tables: token tables with rows of their own, whole, no deltas.
    """

    def __init__(self, stored: StoredStateDict, marks: VectorMarks) -> None:
        self.label, self.beside, self._stored = stored.label, stored.beside, stored
        self.own = frozenset(marks["own"])
        self.tables = tuple(marks.get("tables", ()))
        self.tensors: dict[str, TensorInfo] = stored.tensors
        self._restored: Callable[[str, int, int], np.ndarray] | None = None
        if marks.get("form", "dense") != "dense":
            shapes = {name: tuple(shape) for name, shape in marks.get("shapes", {}).items()}
            self._restored = restore(stored, marks.get("form", ""), shapes)
            self.tensors = {name: TensorInfo(name, "F64", shape) for name, shape in shapes.items()}
            self.tensors |= {name: stored.tensors[name] for name in self.own}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        if self._restored is None or name in self.own:
            return self._stored.read(name, start, stop)
        return self._restored(name, start, self.tensors[name].count if stop is None else stop)

    def view(self, name: str) -> np.ndarray | None:
        """See `StateDict.view`."""
        return self._stored.view(name) if self._restored is None else None

    def release(self, name: str, start: int, stop: int) -> None:
        """See `StateDict.release`."""
        if self._restored is None:
            self._stored.release(name, start, stop)
