"""Elementwise merges at the speed of the disk: `measure`, then `combine`, over raw entries in bounded memory.

Compiled by numba for the CPU; the reference, through torch, for other devices, or where numba is absent. Importing this
imports neither. README.md next to this file explains the design.
"""

from taskmerge.kernels.dispatch import combine, interpret, measure, measure_model, model_search
from taskmerge.kernels.operands import Health, Measurement, Operand
from taskmerge.kernels.preparing import on_prepare
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
from taskmerge.kernels.rounds import Bracket, Counts, ModelSearch
from taskmerge.kernels.threads import set_threads, threads

__all__ = [
    "Active",
    "Bracket",
    "Counts",
    "DropByRank",
    "DropRandom",
    "Elect",
    "Health",
    "KeepLargest",
    "Largest",
    "Measurement",
    "ModelSearch",
    "Operand",
    "Program",
    "Sum",
    "combine",
    "interpret",
    "measure",
    "measure_model",
    "model_search",
    "on_prepare",
    "set_threads",
    "threads",
]
