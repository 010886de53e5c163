"""What the algebra makes, as `Weights`: a model moved by a task vector, and the deltas themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.checkpoints.output.saving import converted, output_dtype, stored_format
from taskmerge.checkpoints.weights import TensorInfo
from taskmerge.errors import MergeError
from taskmerge.numbers.rounding import decode, encode

if TYPE_CHECKING:
    from taskmerge.merging.algebra.vectors import Checkpoint, TaskVector


class DeltaWeights:
    """`Weights` of a task vector itself: deltas in one float format, own tensors as they are.

    config: that of the specialist, where it brings tensors of its own; the model they are added to takes it on.
    """

    def __init__(self, vector: TaskVector, dtype: str) -> None:
        self.label, self._vector = vector.label, vector
        self.config: Mapping[str, Any] = vector.describing_config() if vector.own else {}
        self._dtype = output_dtype(dtype)
        deltas = {name: TensorInfo(name, self._dtype, shape) for name, shape in vector.shapes.items()}
        self.tensors = {**deltas, **{name: weights.tensors[name] for name, weights in vector.own.items()}}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`."""
        if name in self._vector.own:
            return self._vector.own[name].read(name, start, stop)
        stop = self.tensors[name].count if stop is None else stop
        return encode(self._vector.read(name, start, stop), self._dtype)


class MovedWeights:
    """`Weights` of model + task vector, rounded once into the model's own formats, or into `dtype` (a torch name)."""

    def __init__(self, model: Checkpoint, vector: TaskVector, dtype: str | None = None) -> None:
        self.label = f"{model.label} + {vector.label}"
        self.config = vector.describing_config() if vector.own else model.config
        self._model, self._vector = model, vector
        for name, shape in vector.shapes.items():
            if name not in model.tensors:
                raise MergeError(
                    f"{model.label} lacks {name!r}, which {vector.label} changes", next_move=f"without({name!r})"
                )
            if model.tensors[name].shape != shape:
                raise MergeError(
                    f"{name!r} is {list(model.tensors[name].shape)} in {model.label}, {list(shape)} in {vector.label}",
                    next_move="a task vector moves models of its base's shape",
                )
        own = {name: weights.tensors[name] for name, weights in vector.own.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: stored_format(info, dtype) for name, info in {**model.tensors, **own}.items()
        }
        self.folder = getattr(model.weights, "folder", None)
        self.parts = getattr(model.weights, "parts", None)

    def in_dtype(self, dtype: str) -> MovedWeights:
        """The same, rounded straight into another format."""
        return MovedWeights(self._model, self._vector, dtype)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`."""
        info = self.tensors[name]
        source = self._vector.own.get(name, self._model.weights)
        stored, dtype = source.read(name, start, stop), source.tensors[name].dtype
        if name in self._vector.own or name not in self._vector.shapes:
            return converted(stored, dtype, info.dtype)
        stop = info.count if stop is None else stop
        return encode(decode(stored, dtype) + self._vector.read(name, start, stop), info.dtype)
