"""Tensors cut into pieces, and what a backend must be able to do with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from taskmerge.kernels.operands import Health, Measurement, Operand
from taskmerge.kernels.program import Program, by_mass, given_factor
from taskmerge.kernels.selection import Query
from taskmerge.kernels.threads import map_on_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK = 256  # entries folded first, and worked on at a time: a dozen float64 rows of it fit the first-level cache
PIECE = 1 << 18  # entries folded into one partial sum, always from a multiple of PIECE on


class Pair(NamedTuple):
    """One tensor: the base's and the specialists' operands."""

    base: Operand
    specialists: tuple[Operand, ...]

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The operands: the base's, then those of the specialists."""
        return (self.base, *self.specialists)

    @property
    def row(self) -> int:
        """Length of the last axis; 1 for a scalar, and where there are no entries."""
        return self.base.shape[-1] if self.base.count and self.base.shape else 1


class Piece(NamedTuple):
    """Entries [start, stop) of one tensor."""

    pair: Pair
    start: int
    stop: int

    @property
    def length(self) -> int:
        """The number of entries."""
        return self.stop - self.start

    def widened_to_rows(self) -> Piece:
        """The whole rows that this piece touches."""
        row = self.pair.row
        return Piece(self.pair, self.start // row * row, -(-self.stop // row) * row)


class Job(NamedTuple):
    """A piece to combine: what was measured, one random key per specialist, and where the result goes (1-D)."""

    piece: Piece
    measured: Measurement
    keys: tuple[int, ...]
    out: np.ndarray

    def weights(self, program: Program) -> tuple[float, ...]:
        """Return the measured weights, else those of the program, as float64 values."""
        return tuple(float(w) for w in (program.weights if self.measured.weights is None else self.measured.weights))

    def base_factor(self, program: Program) -> float:
        """`Program.base_factor` of the weights that hold; NaN where those are not finite."""
        if self.measured.weights is not None and not all(map(math.isfinite, self.measured.weights)):
            return math.nan
        return float(program.base_factor(self.measured.weights))

    def factors(self, program: Program) -> tuple[float, ...]:
        """Return the factor of each specialist's survivors.

        One over the density is rounded, because a division per entry takes longer than all other operations on it.
        """
        found = self.measured.factors or ()
        return tuple(float(found[i]) if by_mass(way) else given_factor(way) for i, way in enumerate(program.ways))


def pieces_of(pair: Pair, size: int, start: int = 0, stop: int | None = None) -> list[Piece]:
    """[start, stop) of a tensor, cut at the multiples of `size`."""
    end = pair.base.count if stop is None else stop
    cuts = [start, *range((start // size + 1) * size, end, size), end]
    return [Piece(pair, low, high) for low, high in pairwise(cuts) if low < high]


def combining_size(program: Program, pair: Pair, size: int) -> int:
    """Entries to combine at a time: `size`, or a sixteenth in whole rows where ranks are taken in rows."""
    if program.ranked:
        return max(1, size // 16 // pair.row) * pair.row
    return size


class Backend(Protocol):
    """One implementation of the kernels. All of them give the same bits.

    piece_size: how many entries it likes to take at a time, a multiple of PIECE.  parallel: whether one call works on
    one core only, so that several should run at once.
    """

    piece_size: int
    parallel: bool

    def combine(self, jobs: Sequence[Job], program: Program, out_dtype: str) -> Health:
        """Every job's merged entries into its `out`."""
        ...

    def magnitudes(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Bits of float32(|x - b|), one piece after the other: uint32 (specialists, entries)."""
        ...

    def scan(self, pieces: Sequence[Piece], queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
        """One pass: per query the entries over its bracket, int64 (queries,), and a histogram of those inside,
        int64 (queries, bins), where an entry not at the start of its bin counts RAGGED more."""
        ...

    def gram(self, piece: Piece, models: bool) -> np.ndarray:
        """`<d_i, d_j>` over each PIECE of the piece, or `<b + d_i, b + d_j>`: float64 (PIECEs, specialists,
        specialists)."""
        ...

    def masses(self, piece: Piece, program: Program, keys: Sequence[int]) -> np.ndarray:
        """Σ|d| of all entries and of those that random drops keep, over each PIECE of the piece: float64 (PIECEs, 2,
        specialists). Specialists that are sparsified otherwise are taken whole."""
        ...


def spread(backend: Backend, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`[function(item) for item in items]`, on all cores when one call uses one."""
    return map_on_threads(function, items) if backend.parallel else [function(item) for item in items]
