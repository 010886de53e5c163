"""Elementwise merges at the speed of the disk: `measure`, then `combine`, over raw entries in bounded memory.

Compiled by numba for the CPU; the same through torch for other devices, or where numba is absent. Importing this
imports neither.
"""

from taskmerge.kernels.dispatch import combine, measure, measure_model
from taskmerge.kernels.operands import Health, Measurement, Operand
from taskmerge.kernels.program import (
    Active,
    DropByRank,
    DropRandom,
    Elect,
    KeepLargest,
    Largest,
    Program,
    Sum,
)
from taskmerge.kernels.threads import set_threads, threads

__all__ = [
    "Active",
    "DropByRank",
    "DropRandom",
    "Elect",
    "Health",
    "KeepLargest",
    "Largest",
    "Measurement",
    "Operand",
    "Program",
    "Sum",
    "combine",
    "measure",
    "measure_model",
    "set_threads",
    "threads",
]
