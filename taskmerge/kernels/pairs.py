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
        """Return the complete rows that this piece touches."""
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
        """Return `Program.base_factor` of the weights in force; NaN if those are not finite."""
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
    """Return the pieces of [start, stop) of a tensor between multiples of `size`."""
    end = pair.base.count if stop is None else stop
    cuts = [start, *range((start // size + 1) * size, end, size), end]
    return [Piece(pair, low, high) for low, high in pairwise(cuts) if low < high]


def combining_size(program: Program, pair: Pair, size: int) -> int:
    """Return the number of entries to combine at a time: `size`, or a sixteenth in complete rows for ranks in rows."""
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
        """Write every job's merged entries into its `out`."""
        ...

    def magnitudes(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Return the bits of float32(|x - b|), one piece after the other: uint32 (specialists, entries)."""
        ...

    def scan(self, pieces: Sequence[Piece], queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
        """Make one pass over the pieces.

        Returns per query the number of entries over its bracket, int64 (queries,), and a histogram of those inside,
        int64 (queries, bins), in which an entry that is not at the start of its bin counts RAGGED more.
        """
        ...

    def gram(self, piece: Piece, models: bool) -> np.ndarray:
        """Compute `<d_i, d_j>` over each PIECE of the piece, or `<b + d_i, b + d_j>` if `models`.

        Returns float64 (PIECEs, specialists, specialists).
        """
        ...

    def masses(self, piece: Piece, program: Program, keys: Sequence[int]) -> np.ndarray:
        """Compute Σ|d| of all entries and of those that random drops keep, over each PIECE of the piece.

        Returns float64 (PIECEs, 2, specialists). Of specialists that are sparsified otherwise, all entries count.
        """
        ...


def spread(backend: Backend, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return `[function(item) for item in items]`, on all cores if one call uses one."""
    return map_on_threads(function, items) if backend.parallel else [function(item) for item in items]
