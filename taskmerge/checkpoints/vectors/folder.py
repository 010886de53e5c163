"""A task vector on disk: the folder that `extract` writes, recognised and opened as `Weights` of deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.reading import StoredWeights, load_json, open_stored
from taskmerge.checkpoints.vectors.compressed import restore
from taskmerge.checkpoints.weights import TensorInfo, Weights
from taskmerge.errors import CheckpointError

VECTOR_FILE = "task_vector.json"


def is_task_vector(folder: Path) -> bool:
    """Whether a folder was written by `extract`: its numbers are deltas, not a model."""
    return (folder / VECTOR_FILE).is_file()


def open_task_vector(path: str | Path) -> StoredDeltas:
    """Open a folder of deltas, and of the specialist's own tensors, by the names of the base they were taken from.

    Raises: CheckpointError when it is none.
    """
    stored = open_stored(path)
    if stored.beside.folder is None or not is_task_vector(stored.beside.folder):
        raise CheckpointError("a checkpoint, but no task vector", str(path), "task vectors are made by extract")
    place = stored.beside.folder / VECTOR_FILE
    marks = load_json(place)
    if not isinstance(marks, dict) or not isinstance(marks.get("own"), list):
        raise CheckpointError("does not say which tensors are the specialist's own", str(place), "extract it again")
    return StoredDeltas(stored, marks)


class StoredDeltas(Weights):
    """`Weights` of a task vector's folder; compressed deltas as float64.

    own: the specialist's own tensors, whole. tables: token tables with rows of their own, whole, no deltas.
    """

    def __init__(self, stored: StoredWeights, marks: Mapping[str, Any]) -> None:
        self.label, self.beside, self._stored = stored.label, stored.beside, stored
        self.own = frozenset(marks["own"])
        self.tables = tuple(marks.get("tables", ()))
        self.tensors: dict[str, TensorInfo] = stored.tensors
        self._restored: Callable[[str, int, int], np.ndarray] | None = None
        if marks.get("form", "dense") != "dense":
            shapes = {name: tuple(shape) for name, shape in marks["shapes"].items()}
            self._restored = restore(stored, marks["form"], shapes)
            self.tensors = {name: TensorInfo(name, "F64", shape) for name, shape in shapes.items()}
            self.tensors |= {name: stored.tensors[name] for name in self.own}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`."""
        if self._restored is None or name in self.own:
            return self._stored.read(name, start, stop)
        return self._restored(name, start, self.tensors[name].count if stop is None else stop)

    def view(self, name: str) -> np.ndarray | None:
        """See `Weights.view`."""
        return self._stored.view(name) if self._restored is None else None

    def release(self, name: str, start: int, stop: int) -> None:
        """See `Weights.release`."""
        if self._restored is None:
            self._stored.release(name, start, stop)
