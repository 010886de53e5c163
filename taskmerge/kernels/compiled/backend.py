"""Operands to addresses, programs to codes: the Python side of the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from taskmerge.dtypes import DTYPES
from taskmerge.kernels.compiled import blocks, combining, ranking, scanning
from taskmerge.kernels.compiled.formats import CODES
from taskmerge.kernels.operands import Health
from taskmerge.kernels.pairs import BLOCK, PIECE, Job, Piece, pieces_of
from taskmerge.kernels.program import Active, DropByRank, DropRandom, Elect, KeepLargest, Largest, Program
from taskmerge.kernels.selection import Query
from taskmerge.kernels.threads import map_on_threads, threads
from taskmerge.randomness import keep_limit

_VOTES = {"weighted_mass": blocks.WEIGHTED_MASS, "mass": blocks.MASS, "count": blocks.COUNT}
_AVERAGES = {"weight": blocks.BY_WEIGHT, "count": blocks.BY_COUNT, "none": blocks.BY_NOTHING}
_FOLDED = PIECE // BLOCK


def plain(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array as the kernels take it: contiguous, aligned, of the storage dtype; copied only if it is not."""
    if array.flags.carray and array.dtype == DTYPES[dtype].storage:
        return array
    return np.require(array, DTYPES[dtype].storage, ["C", "A"])


def address_of(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def views(piece: Piece) -> tuple[list[np.ndarray], list[int], list[int]]:
    """The piece's arrays (to be kept alive), their addresses and format codes, the base's first."""
    arrays = [plain(operand.read(piece.start, piece.stop), operand.dtype) for operand in piece.pair.operands]
    return arrays, [address_of(array) for array in arrays], [CODES[operand.dtype] for operand in piece.pair.operands]


def table(rows: Sequence[Sequence[float]], dtype: type, columns: int) -> np.ndarray:
    """One row per job, one column per specialist."""
    return np.array(rows, dtype).reshape(len(rows), columns)


class CompiledBackend:
    """The kernels on the CPU. Each call works on one core and releases the interpreter lock."""

    piece = PIECE
    parallel = True

    def combine(self, jobs: Sequence[Job], program: Program, out_dtype: str) -> Health:
        """See `Backend.combine`."""
        count = len(program.weights)
        alive, targets, addresses, codes, extras = [], [], [], [], []
        for job in jobs:
            arrays, places, formats = views(job.piece)
            chances, chance_places = self._chances(job.piece, arrays, program)
            target = plain(job.out, out_dtype)
            alive.append((arrays, chances))
            targets.append(target)
            addresses.append([*places, address_of(target)])
            codes.append([*formats, CODES[out_dtype]])
            extras.append(chance_places)
        health = np.zeros(2, np.int64)
        combine_pieces: Any = combining.combine_pieces  # mypy cannot count starred arguments
        combine_pieces(
            table(addresses, np.int64, count + 2),
            table(codes, np.int64, count + 2),
            np.array([job.piece.length for job in jobs], np.int64),
            np.array([job.piece.start for job in jobs], np.int64),
            table([job.keys or (0,) * count for job in jobs], np.uint64, count),
            *_survival_arguments(jobs, program),
            table(extras, np.int64, count),
            table([job.weights(program) for job in jobs], np.float64, count),
            *_consensus_codes(program),
            float(program.base_factor),
            float(program.scale),
            health,
        )
        del alive
        for job, target in zip(jobs, targets, strict=True):
            if target is not job.out:
                job.out[:] = target
        return Health(int(health[0]), int(health[1]))

    def _chances(self, piece: Piece, arrays: list[np.ndarray], program: Program) -> tuple[np.ndarray, list[int]]:
        """For `DropByRank`: keep-probabilities, float64 (specialists, entries), and the address of each row."""
        drop, count = program.sparsify, len(program.weights)
        if not isinstance(drop, DropByRank):
            return np.empty(0), [0] * count
        row, whole = piece.pair.row, piece.widened_to_rows()
        if whole != piece:
            arrays, _, _ = views(whole)
        places, codes = [address_of(array) for array in arrays], [CODES[o.dtype] for o in piece.pair.operands]
        chances = np.empty((count, whole.length))
        for i in range(count):
            keys = np.empty(whole.length, np.uint64)
            ranking.pack(np.array(places, np.int64), np.array(codes, np.int64), i, row, keys)
            keys.reshape(-1, row).sort(axis=1)
            ranking.chances_of_ranks(keys, row, drop.density, drop.epsilon, chances[i])
        return chances, [address_of(chances[i]) + 8 * (piece.start - whole.start) for i in range(count)]

    def magnitudes(self, piece: Piece, specialist: int) -> np.ndarray:
        """See `Backend.magnitudes`."""
        two = Piece(piece.pair._replace(specialists=(piece.pair.specialists[specialist],)), piece.start, piece.stop)
        arrays, addresses, codes = views(two)
        out = np.empty(piece.length, np.uint32)
        scanning.magnitudes(np.array(addresses, np.int64), np.array(codes, np.int64), out)
        del arrays
        return out

    def scan(self, pieces: Sequence[Piece], queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.scan`. Every worker counts for itself; whole numbers are added at the end."""
        bins = max(((query.high - query.low) >> query.shift) + 1 for query in queries)
        columns = (
            np.array([query.specialist for query in queries], np.int64),
            np.array([query.low for query in queries], np.uint32),
            np.array([query.high for query in queries], np.uint32),
            np.array([query.shift for query in queries], np.uint32),
        )

        def run(share: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
            above, histogram = np.zeros(len(queries), np.int64), np.zeros((len(queries), bins), np.int64)
            for piece in share:
                arrays, addresses, codes = views(piece)
                scanning.count_in_brackets(
                    np.array(addresses, np.int64), np.array(codes, np.int64), piece.length, *columns, above, histogram
                )
                del arrays
            return above, histogram

        workers = min(threads(), len(pieces))
        results = map_on_threads(run, [pieces[worker::workers] for worker in range(workers)])
        above, histogram = results[0]
        for more_above, more in results[1:]:
            above += more_above
            histogram += more
        return above, histogram

    def gram(self, piece: Piece) -> np.ndarray:
        """See `Backend.gram`."""
        specialists = len(piece.pair.specialists)
        sums = []
        for part in pieces_of(piece.pair, PIECE, piece.start, piece.stop):
            arrays, addresses, codes = views(part)
            partial = np.zeros((specialists, specialists, _FOLDED))
            scanning.gram_of_piece(np.array(addresses, np.int64), np.array(codes, np.int64), part.length, partial)
            del arrays
            sums.append(partial[:, :, 0])
        return np.stack(sums)

    def masses(self, piece: Piece, keys: Sequence[int], limit: int) -> np.ndarray:
        """See `Backend.masses`."""
        sums = []
        for part in pieces_of(piece.pair, PIECE, piece.start, piece.stop):
            arrays, addresses, codes = views(part)
            partial = np.zeros((2, len(piece.pair.specialists), _FOLDED))
            scanning.mass_of_piece(
                np.array(addresses, np.int64),
                np.array(codes, np.int64),
                part.length,
                part.start,
                np.array(keys, np.uint64),
                np.uint64(limit),
                partial,
            )
            del arrays
            sums.append(partial[:, :, 0])
        return np.stack(sums)


def _survival_arguments(jobs: Sequence[Job], program: Program) -> tuple[Any, ...]:
    """low, high, limit, divisor, factors, sparsify as `combine_pieces` takes them."""
    piece, count = program.sparsify, len(program.weights)
    none: list[tuple[float, ...]] = [(1.0,) * count] * len(jobs)
    low, high, factors = none, none, none
    limit, divisor, mode = 0, 1.0, combining.KEEP_ALL
    if isinstance(piece, KeepLargest):
        mode = combining.KEEP_BETWEEN
        low = [job.found.lowest or () for job in jobs]
        high = [job.found.highest or (math.inf,) * count for job in jobs]
    elif isinstance(piece, DropRandom):
        mode, limit = combining.DROP_RANDOM, keep_limit(piece.density)
        if piece.rescale == "inverse_density":
            divisor = float(piece.density)
        elif piece.rescale == "l1":
            factors = [job.found.factors or () for job in jobs]
    elif isinstance(piece, DropByRank):
        mode = combining.DROP_BY_RANK_RESCALED if piece.rescale else combining.DROP_BY_RANK
    return (
        table(low, np.float32, count),
        table(high, np.float32, count),
        np.uint64(limit),
        divisor,
        table(factors, np.float64, count),
        mode,
    )


def _consensus_codes(program: Program) -> tuple[int, int, int, float, int]:
    """consensus, vote, average, theta, minimum as `combine_pieces` takes them."""
    consensus = program.consensus
    if isinstance(consensus, Elect):
        return blocks.ELECT, _VOTES[consensus.elect], _AVERAGES[consensus.average], 0.0, 0
    if isinstance(consensus, Largest):
        return blocks.LARGEST, 0, 0, 0.0, 0
    if isinstance(consensus, Active):
        return blocks.ACTIVE, 0, 0, float(consensus.theta), int(consensus.minimum)
    return blocks.SUM, 0, 0, 0.0, 0
