"""Operands to addresses, programs to codes, work to threads: the Python side of the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from taskmerge.dtypes import DTYPES
from taskmerge.kernels.compiled import blocks, combining, scanning
from taskmerge.kernels.compiled.formats import CODES
from taskmerge.kernels.operands import Health, Measurement, Operand
from taskmerge.kernels.program import Active, DropRandom, Elect, KeepLargest, Largest, Program
from taskmerge.kernels.selection import Query, find_all, magnitude_of
from taskmerge.kernels.threads import map_on_threads, threads
from taskmerge.randomness import keep_limit

PIECE = 1 << 18  # entries per unit of work; sums are folded over exactly these pieces
_SAMPLE_BLOCKS, _SAMPLE_BLOCK = 64, 2048
_VOTES = {"weighted_mass": blocks.WEIGHTED_MASS, "mass": blocks.MASS, "count": blocks.COUNT}
_AVERAGES = {"weight": blocks.BY_WEIGHT, "count": blocks.BY_COUNT, "none": blocks.BY_NOTHING}


class Pair(NamedTuple):
    """One tensor: the base's and the specialists' operands."""

    base: Operand
    specialists: Sequence[Operand]

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.base, *self.specialists)


class Piece(NamedTuple):
    """Entries [start, stop) of one tensor."""

    pair: Pair
    start: int
    stop: int


def plain(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array as the kernels take it: contiguous, aligned, of the storage dtype; copied only if it is not."""
    return np.require(array, DTYPES[dtype].storage, ["C", "A"])


def views(piece: Piece) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The piece's arrays (to be kept alive), their addresses and format codes."""
    arrays = [plain(operand.read(piece.start, piece.stop), operand.dtype) for operand in piece.pair.operands]
    addresses = np.array([array.ctypes.data for array in arrays], np.int64)
    codes = np.array([CODES[operand.dtype] for operand in piece.pair.operands], np.int64)
    return arrays, addresses, codes


def pieces_of(pair: Pair, start: int = 0, stop: int | None = None) -> list[Piece]:
    """[start, stop) of a tensor, cut at fixed places."""
    end = pair.base.count if stop is None else stop
    cuts = [start, *range((start // PIECE + 1) * PIECE, end, PIECE), end]
    return [Piece(pair, low, high) for low, high in pairwise(cuts) if low < high]


def combine(
    pair: Pair,
    program: Program,
    measurement: Measurement | None,
    keys: Sequence[int],
    start: int,
    stop: int,
    out: np.ndarray,
    out_dtype: str,
) -> Health:
    """See `taskmerge.kernels.combine`."""

    def run(piece: Piece) -> Health:
        return _combine_piece(
            piece, program, measurement, keys, out[piece.start - start : piece.stop - start], out_dtype
        )

    return sum(map_on_threads(run, pieces_of(pair, start, stop)), Health())


def _combine_piece(
    piece: Piece,
    program: Program,
    measurement: Measurement | None,
    keys: Sequence[int],
    out: np.ndarray,
    out_dtype: str,
) -> Health:
    arrays, addresses, codes = views(piece)
    count = piece.stop - piece.start
    specialists = len(piece.pair.specialists)
    health = np.zeros(2, np.int64)
    target = out if out.flags.c_contiguous and out.flags.aligned else np.empty(count, out.dtype)
    weights = program.weights
    if measurement is not None and measurement.weights is not None:
        weights = measurement.weights
    low, high, factors = np.zeros(specialists), np.full(specialists, np.inf), np.ones(specialists)
    sparsify, limit = combining.KEEP_ALL, 0
    if isinstance(program.sparsify, KeepLargest):
        assert measurement is not None and measurement.lowest is not None and measurement.highest is not None
        sparsify, low, high = combining.KEEP_BETWEEN, np.array(measurement.lowest), np.array(measurement.highest)
    elif isinstance(program.sparsify, DropRandom):
        sparsify, limit = combining.DROP_RANDOM, keep_limit(program.sparsify.density)
        if program.sparsify.rescale == "inverse_density":
            factors = factors / program.sparsify.density
        elif program.sparsify.rescale == "l1":
            assert measurement is not None and measurement.factors is not None
            factors = np.array(measurement.factors)
    consensus, vote, average, theta, minimum = _consensus_codes(program)
    combining.combine_pieces(
        np.append(addresses, target.ctypes.data)[None],
        np.append(codes, CODES[out_dtype])[None],
        np.array([count], np.int64),
        np.array([piece.start], np.int64),
        np.array([keys if len(keys) else [0] * specialists], np.uint64),
        low.astype(np.float32)[None],
        high.astype(np.float32)[None],
        np.uint64(limit),
        factors[None],
        np.array([weights], np.float64).reshape(1, specialists),
        sparsify,
        consensus,
        vote,
        average,
        theta,
        minimum,
        float(program.base_factor),
        float(program.scale),
        health,
    )
    del arrays
    if target is not out:
        out[:] = target
    return Health(int(health[0]), int(health[1]))


def _consensus_codes(program: Program) -> tuple[int, int, int, float, int]:
    """Consensus, vote, average, theta, minimum as the compiled kernel takes them."""
    consensus = program.consensus
    if isinstance(consensus, Elect):
        return blocks.ELECT, _VOTES[consensus.elect], _AVERAGES[consensus.average], 0.0, 0
    if isinstance(consensus, Largest):
        return blocks.LARGEST, 0, 0, 0.0, 0
    if isinstance(consensus, Active):
        return blocks.ACTIVE, 0, 0, float(consensus.theta), int(consensus.minimum)
    return blocks.SUM, 0, 0, 0.0, 0


def thresholds(pairs: Sequence[Pair], keep: KeepLargest) -> Measurement:
    """The magnitudes between which `keep` keeps, one pair of thresholds per specialist over all `pairs` together."""
    total = sum(pair.base.count for pair in pairs)
    specialists = len(pairs[0].specialists)
    first, last = keep.ranks(total)
    queries = []
    for i in range(specialists):
        queries.append(Query(i, last))
        if first > 1:
            queries.append(Query(i, first))
    for query in queries:
        query.bracket_from(_sample(pairs, query.specialist, total), total)
    pieces = [piece for pair in pairs for piece in pieces_of(pair)]
    find_all(queries, lambda open_queries: _scan(pieces, open_queries))
    found = {(query.specialist, query.rank): magnitude_of(query.found or 0) for query in queries}
    return Measurement(
        lowest=tuple(found[i, last] for i in range(specialists)),
        highest=tuple(found[i, first] if first > 1 else math.inf for i in range(specialists)),
    )


def _sample(pairs: Sequence[Pair], specialist: int, total: int) -> np.ndarray:
    """Magnitudes (bits) of evenly spread blocks, or of everything when that is little."""
    size = _SAMPLE_BLOCKS * _SAMPLE_BLOCK
    stride = max(_SAMPLE_BLOCK, total // _SAMPLE_BLOCKS) if total > size else _SAMPLE_BLOCK
    parts = []
    for pair in pairs:
        two = Pair(pair.base, (pair.specialists[specialist],))
        for start in range(0, pair.base.count, stride):
            piece = Piece(two, start, min(start + _SAMPLE_BLOCK, pair.base.count))
            arrays, addresses, codes = views(piece)
            out = np.empty(piece.stop - piece.start, np.uint32)
            scanning.magnitudes(addresses, codes, 0, 0, out)
            parts.append(out)
            del arrays
    return np.concatenate(parts)


def _scan(pieces: Sequence[Piece], queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the pieces for all queries; every worker counts for itself, whole numbers are added at the end."""
    bins = max(((query.high - query.low) >> query.shift) + 1 for query in queries)
    columns = (
        np.array([query.specialist for query in queries], np.int64),
        np.array([query.low for query in queries], np.uint32),
        np.array([query.high for query in queries], np.uint32),
        np.array([query.shift for query in queries], np.uint32),
    )

    def run(share: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
        above, histogram = np.zeros(len(queries), np.int64), np.zeros((len(queries), bins), np.uint32)
        for piece in share:
            arrays, addresses, codes = views(piece)
            scanning.count_in_brackets(addresses, codes, piece.stop - piece.start, *columns, above, histogram)
            del arrays
        return above, histogram

    workers = min(threads(), len(pieces))
    results = map_on_threads(run, [pieces[worker::workers] for worker in range(workers)])
    above = sum(result[0] for result in results)
    histogram = results[0][1].astype(np.int64)
    for result in results[1:]:
        histogram += result[1]
    return np.asarray(above), histogram


def gram(pair: Pair) -> np.ndarray:
    """`<d_i, d_j>` of one tensor, float64 (specialists, specialists); folded in a fixed order, then summed exactly."""
    specialists = len(pair.specialists)

    def run(piece: Piece) -> np.ndarray:
        arrays, addresses, codes = views(piece)
        partial = np.zeros((specialists, specialists, PIECE // blocks.BLOCK))
        scanning.gram_of_piece(addresses, codes, piece.stop - piece.start, partial)
        del arrays
        return partial[:, :, 0].copy()

    parts = map_on_threads(run, pieces_of(pair))
    return exact_sum(parts, (specialists, specialists))


def rescale_factors(pair: Pair, drop: DropRandom, keys: Sequence[int]) -> tuple[float, ...]:
    """Per specialist, what the survivors are multiplied by so that the delta keeps its sum of magnitudes."""
    specialists = len(pair.specialists)
    key_array, limit = np.array(keys, np.uint64), np.uint64(keep_limit(drop.density))

    def run(piece: Piece) -> np.ndarray:
        arrays, addresses, codes = views(piece)
        partial = np.zeros((2, specialists, PIECE // blocks.BLOCK))
        scanning.mass_of_piece(addresses, codes, piece.stop - piece.start, piece.start, key_array, limit, partial)
        del arrays
        return partial[:, :, 0].copy()

    whole, kept = exact_sum(map_on_threads(run, pieces_of(pair)), (2, specialists))
    return tuple(float(a / b) if b > 0 else 1.0 for a, b in zip(whole, kept, strict=True))


def exact_sum(parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Entrywise sum, exactly rounded, so that the order of the parts plays no role."""
    if not parts:
        return np.zeros(shape)
    stacked = np.stack(parts).reshape(len(parts), -1)
    return np.array([math.fsum(stacked[:, j]) for j in range(stacked.shape[1])]).reshape(shape)
