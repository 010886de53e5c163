"""The passes before combining, on any backend: thresholds, the Gram matrix, sums of magnitudes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from taskmerge.kernels.pairs import Backend, Pair, Piece, pieces_of, spread
from taskmerge.kernels.program import KeepLargest, Program
from taskmerge.kernels.selection import BINS_OF_HALVES, MOST_BINS, Query, magnitude_of

_LEAST_SAMPLE_BLOCKS, _MOST_SAMPLE_BLOCKS, _SAMPLE_BLOCK = 32, 256, 512

Bounds = dict[KeepLargest, tuple[float, float]]  # way -> the lowest and the highest magnitude that it keeps


class Search:
    """The magnitudes between which each specialist's ways to keep keep, over some tensors together, pass by pass.

    A pass over all tensors may be shared: each of several processes scans some of them, and their counts are added.
    keeps: one row of ways per specialist of the pairs.
    """

    def __init__(self, backend: Backend, pairs: Sequence[Pair], keeps: Sequence[Sequence[KeepLargest]]) -> None:
        self._backend, self._pairs, self._keeps = backend, pairs, keeps
        self._total = total = sum(pair.base.count for pair in pairs)
        self._ranks = [{way: way.ranks(total) for way in ways if not way.nothing} if total else {} for ways in keeps]
        bins = MOST_BINS if any(_wide(pair) for pair in pairs) else BINS_OF_HALVES
        self.queries = [
            Query(i, rank, total, most_bins=bins)
            for i, rows in enumerate(self._ranks)
            for rank in dict.fromkeys(
                [last for _, last in rows.values()] + [first for first, _ in rows.values() if first > 1]
            )
        ]

    @property
    def open(self) -> list[Query]:
        """The queries without an answer."""
        return [query for query in self.queries if query.bits is None]

    def sample(self) -> None:
        """Bracket every query from a sample of all tensors."""
        if not self.queries:
            return
        samples = _samples(self._backend, self._pairs, self._total)
        for query in self.queries:
            query.bracket_from(samples[query.specialist])

    def scan(self, pairs: Sequence[Pair] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Make one pass for the open queries, over some of the tensors, or all: see `Backend.scan`."""
        pairs = self._pairs if pairs is None else pairs
        pieces = [piece for pair in pairs for piece in pieces_of(pair, self._backend.piece_size)]
        if not pieces:
            return np.zeros(len(self.open), np.int64), np.zeros((len(self.open), 0), np.int64)
        return self._backend.scan(pieces, self.open)

    def narrow(self, above: np.ndarray, histogram: np.ndarray) -> None:
        """Take in the counts of one pass over all tensors."""
        for query, count, bins in zip(self.open, above, histogram, strict=True):
            query.narrow(int(count), bins)

    def bounds(self) -> list[Bounds]:
        """Return the bounds that the search found."""
        if self._total == 0:
            return [dict.fromkeys(ways, (0.0, 0.0)) for ways in self._keeps]
        found = {(query.specialist, query.rank): magnitude_of(query.bits or 0) for query in self.queries}
        return [
            {way: (found[i, last], found[i, first] if first > 1 else math.inf) for way, (first, last) in rows.items()}
            | {way: (math.inf, math.inf) for way in ways if way.nothing}
            for i, (ways, rows) in enumerate(zip(self._keeps, self._ranks, strict=True))
        ]


def find_bounds(backend: Backend, pairs: Sequence[Pair], keeps: Sequence[Sequence[KeepLargest]]) -> list[Bounds]:
    """Find the magnitudes between which each specialist keeps entries, in each of its ways, over all `pairs` together.

    keeps: one row of ways per specialist of the pairs.
    """
    search = Search(backend, pairs, keeps)
    search.sample()
    while search.open:
        search.narrow(*search.scan())
    return search.bounds()


def _wide(pair: Pair) -> bool:
    """Whether deltas may have more significant bits than two 16-bit numbers' mostly have."""
    return any(operand.dtype in ("F32", "F64") for operand in pair.operands)


def _samples(backend: Backend, pairs: Sequence[Pair], total: int) -> np.ndarray:
    """Magnitudes (bits) of evenly spread blocks, or of everything when that is little: uint32 (specialists, entries),
    each row sorted."""
    blocks = min(max(total >> 16, _LEAST_SAMPLE_BLOCKS), _MOST_SAMPLE_BLOCKS)
    stride = total // blocks if total > blocks * _SAMPLE_BLOCK else _SAMPLE_BLOCK
    pieces = [
        Piece(pair, start, min(start + _SAMPLE_BLOCK, pair.base.count))
        for pair in pairs
        for start in range(0, pair.base.count, stride)
    ]
    sampled = backend.magnitudes(pieces)
    sampled.sort(axis=1)
    return sampled


def gram_matrix(backend: Backend, pair: Pair, program: Program) -> np.ndarray:
    """Compute `<d_i, d_j>` of one tensor, or of its models (`Program.gram_of`): float64 (specialists, specialists)."""
    models, specialists = program.gram_of == "models", len(pair.specialists)
    parts = spread(backend, lambda piece: backend.gram(piece, models), pieces_of(pair, backend.piece_size))
    return exact_sum(parts, (specialists, specialists))


def mass_factors(backend: Backend, pair: Pair, program: Program, keys: Sequence[int]) -> tuple[float, ...]:
    """Return the factor of each specialist's survivors that keeps the delta's sum of magnitudes."""
    parts = spread(backend, lambda piece: backend.masses(piece, program, keys), pieces_of(pair, backend.piece_size))
    whole, kept = exact_sum(parts, (2, len(pair.specialists)))
    return factors_of(whole, kept)


def factors_of(whole: Iterable[float], kept: Iterable[float]) -> tuple[float, ...]:
    """Return the factors of survivors from the sums of magnitudes of all entries and of survivors."""
    return tuple(float(a / b) if b > 0 else 1.0 for a, b in zip(whole, kept, strict=True))


def exact_sum(parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the first axes, exactly rounded: the order of the parts plays no role."""
    if not parts:
        return np.zeros(shape)
    columns = np.concatenate([part.reshape(-1, math.prod(shape)) for part in parts]).T
    return np.array([math.fsum(column) for column in columns]).reshape(shape)
