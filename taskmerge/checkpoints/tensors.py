"""The header entry of one tensor, wherever it lives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from taskmerge.numbers.dtypes import DTYPES, DType


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Header entry of one tensor. dtype: safetensors name ("BF16"); shape: as stored, () for a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def format(self) -> DType:
        """The number format of the tensor."""
        return DTYPES[self.dtype]

    @property
    def count(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return DTYPES[self.dtype].bytes_of(self.shape)
