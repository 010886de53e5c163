"""Inputs and results of a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from taskmerge.kernels.program import Program


@dataclass(frozen=True)
class Operand:
    """One tensor of one input, flat.

    dtype: "BF16", "F16", "F32" or "F64".  shape: as in the checkpoint.
    read: entries [start, stop) as a 1-D array of the storage dtype (BF16 as uint16 bits); a view of mapped pages where
    possible, computed where not; may be unaligned. Called from several threads at once.
    view: the result of `read` for all entries, if that is in memory or in a mapped file; else None.
    is_delta: the entries are a task vector's own; the base is not subtracted. Of specialists only.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    view: np.ndarray | None = None
    is_delta: bool = False

    @property
    def count(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @cached_property
    def address(self) -> int | None:
        """The address of the first entry of `view` if all entries are contiguous and aligned; else None."""
        view = self.view
        if view is None or not (view.flags.c_contiguous and view.flags.aligned):
            return None
        return view.__array_interface__["data"][0]


@dataclass(frozen=True)
class Health:
    """NaN and infinite entries met: in all inputs together, and in the output (inputs' own or overflow)."""

    nonfinite_inputs: int = 0
    nonfinite_outputs: int = 0

    def __add__(self, other: Health) -> Health:
        return Health(self.nonfinite_inputs + other.nonfinite_inputs, self.nonfinite_outputs + other.nonfinite_outputs)


@dataclass(frozen=True)
class Measurement:
    """The results of the passes before combining, one entry per specialist; None for values that are not needed.

    lowest, highest: the magnitudes (float32 values) between which `KeepLargest` keeps entries; 0 and infinity for
    specialists that are sparsified otherwise.  factors: the factor of the survivors of a random drop ("l1"; 1 for
    others), as fractions if measured for float64 outputs.  gram: `<d_i, d_j>`, or `<x_i, x_j>` of the models, float64.
    weights: `Program.from_gram(gram)`.
    """

    lowest: tuple[float, ...] | None = None
    highest: tuple[float, ...] | None = None
    factors: tuple[float | Fraction, ...] | None = None
    gram: np.ndarray | None = None
    weights: tuple[float, ...] | None = None

    def weighed(self, program: Program) -> Measurement:
        """Return the same with the weights from the Gram matrix, if the program computes weights from it."""
        if program.from_gram is None or self.gram is None:
            return self
        return replace(self, weights=tuple(float(weight) for weight in program.from_gram(self.gram)))
