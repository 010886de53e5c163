"""What every set of named tensors offers, wherever it lives: disk, memory, or computed on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from taskmerge.numbers.dtypes import DTYPES, DType

BASE = "base"
"""The label of the model that all others were fine-tuned from."""


@dataclass(frozen=True)
class TensorInfo:
    """Header entry of one tensor. dtype: safetensors name ("BF16"); shape: as stored, () for a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def format(self) -> DType:
        return DTYPES[self.dtype]

    @property
    def count(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return (self.count * self.format.bits + 7) // 8


@runtime_checkable
class Weights(Protocol):
    """A lazy, read-only set of named tensors.

    label: what messages call it (a path, a specialist's name).  tensors: headers by name, in file order; making
    them reads no tensor.  config: the model's config.json as a dict ({} when there is none).
    """

    label: str

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Entries [start, stop) of the flattened tensor, little-endian, as a 1-D array of its storage dtype.

        BF16 and 8-bit floats come as bit patterns (uint16, uint8). A view of mapped pages where possible, never
        to be written to. Raises CheckpointError when the bytes cannot be had.

        Weights in mapped files also have ``view(name)``: what ``read(name)`` gives, if that is a view and is free,
        else None; and ``release(name, start, stop)``: these entries will hardly be read again.
        """
        ...
