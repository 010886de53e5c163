"""What the algebra makes, as `Weights`: a model moved by a task vector, and the deltas themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.checkpoints.saving import output_dtype
from taskmerge.checkpoints.weights import TensorInfo
from taskmerge.errors import MergeError
from taskmerge.rounding import decode, encode

if TYPE_CHECKING:
    from taskmerge.task_vectors.algebra import Checkpoint, TaskVector


class DeltaWeights:
    """`Weights` of a task vector itself: deltas in one float format, own tensors as they are."""

    def __init__(self, vector: TaskVector, dtype: str) -> None:
        self.label, self._vector = vector.label, vector
        self.config: Mapping[str, Any] = {}
        self._dtype = output_dtype(dtype)
        deltas = {name: TensorInfo(name, self._dtype, shape) for name, shape in vector.shapes.items()}
        self.tensors = {**deltas, **{name: weights.tensors[name] for name, weights in vector.own.items()}}
        folders = {name.rpartition("/")[0] for name in self.tensors}
        self.parts = {"": "", **{part: part for part in sorted(folders)}}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`."""
        if name in self._vector.own:
            return self._vector.own[name].read(name, start, stop)
        stop = self.tensors[name].count if stop is None else stop
        return encode(self._vector.read(name, start, stop), self._dtype)


class MovedWeights:
    """`Weights` of model + task vector, rounded once into the model's own formats."""

    def __init__(self, model: Checkpoint, vector: TaskVector) -> None:
        self.label = f"{model.label} + {vector.label}"
        self.config = vector.describing_config() if vector.own else model.config
        self._model, self._vector = model, vector
        unknown = [name for name in vector.shapes if name not in model.tensors]
        if unknown:
            raise MergeError(f"{model.label} lacks {unknown[0]!r}, which {vector.label} changes")
        own = {name: weights.tensors[name] for name, weights in vector.own.items()}
        self.tensors: Mapping[str, TensorInfo] = {**model.tensors, **own}
        self.folder = getattr(model.weights, "folder", None)
        self.parts = getattr(model.weights, "parts", None)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`."""
        if name in self._vector.own:
            return self._vector.own[name].read(name, start, stop)
        stored = self._model.weights.read(name, start, stop)
        if name not in self._vector.shapes:
            return stored
        dtype = self.tensors[name].dtype
        stop = self.tensors[name].count if stop is None else stop
        return encode(decode(stored, dtype) + self._vector.read(name, start, stop), dtype)
