"""The passes before combining, on any backend: thresholds, the Gram matrix, sums of magnitudes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from taskmerge.kernels.operands import Measurement
from taskmerge.kernels.pairs import Backend, Pair, Piece, pieces_of, spread
from taskmerge.kernels.program import DropRandom, KeepLargest
from taskmerge.kernels.selection import BINS_OF_HALVES, MOST_BINS, Query, find_all, magnitude_of
from taskmerge.numbers.randomness import keep_limit

_LEAST_SAMPLE_BLOCKS, _MOST_SAMPLE_BLOCKS, _SAMPLE_BLOCK = 32, 256, 512


def thresholds(backend: Backend, pairs: Sequence[Pair], keeps: Sequence[KeepLargest]) -> Measurement:
    """The magnitudes between which each specialist's `KeepLargest` keeps, over all `pairs` together."""
    total = sum(pair.base.count for pair in pairs)
    ranks = [keep.ranks(total) for keep in keeps]
    bins = MOST_BINS if any(_wide(pair) for pair in pairs) else BINS_OF_HALVES
    queries = [Query(i, last, total, most_bins=bins) for i, (_, last) in enumerate(ranks)]
    queries += [Query(i, first, total, most_bins=bins) for i, (first, _) in enumerate(ranks) if first > 1]
    queries.sort(key=lambda query: query.specialist)
    samples = _samples(backend, pairs, total)
    for query in queries:
        query.bracket_from(samples[query.specialist])
    pieces = [piece for pair in pairs for piece in pieces_of(pair, backend.piece)]
    find_all(queries, lambda open_queries: backend.scan(pieces, open_queries))
    found = {(query.specialist, query.rank): magnitude_of(query.found or 0) for query in queries}
    return Measurement(
        lowest=tuple(found[i, last] for i, (_, last) in enumerate(ranks)),
        highest=tuple(found[i, first] if first > 1 else math.inf for i, (first, _) in enumerate(ranks)),
    )


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


def gram(backend: Backend, pair: Pair) -> np.ndarray:
    """`<d_i, d_j>` of one tensor, float64 (specialists, specialists)."""
    specialists = len(pair.specialists)
    parts = spread(backend, backend.gram, pieces_of(pair, backend.piece))
    return _exact_sum(parts, (specialists, specialists))


def rescale_factors(backend: Backend, pair: Pair, drop: DropRandom, keys: Sequence[int]) -> tuple[float, ...]:
    """Per specialist, what the survivors are multiplied by so that the delta keeps its sum of magnitudes."""
    limit = keep_limit(drop.density)
    parts = spread(backend, lambda piece: backend.masses(piece, keys, limit), pieces_of(pair, backend.piece))
    whole, kept = _exact_sum(parts, (2, len(pair.specialists)))
    return tuple(float(a / b) if b > 0 else 1.0 for a, b in zip(whole, kept, strict=True))


def _exact_sum(parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the first axes, exactly rounded: the order of the parts plays no role."""
    if not parts:
        return np.zeros(shape)
    columns = np.concatenate([part.reshape(-1, math.prod(shape)) for part in parts]).T
    return np.array([math.fsum(column) for column in columns]).reshape(shape)
