"""Operands to addresses, programs to codes: the Python side of the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from taskmerge.kernels.compiled import codes
from taskmerge.kernels.compiled.native import address_of, kernel
from taskmerge.kernels.operands import Health
from taskmerge.kernels.pairs import BLOCK, PIECE, Job, Piece, pieces_of
from taskmerge.kernels.program import (
    Active,
    DropByRank,
    DropRandom,
    Elect,
    KeepLargest,
    Largest,
    Program,
    Sparsify,
)
from taskmerge.kernels.selection import Query
from taskmerge.kernels.threads import map_on_threads, threads
from taskmerge.numbers.dtypes import DTYPES
from taskmerge.numbers.randomness import keep_limit

_FOLDED = PIECE // BLOCK
_LONGEST_SHORT = 1 << 14
_BEYOND = np.float64(2.0**128)  # what the next float32 after the largest would be


def plain(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the array in the kernels' form: contiguous, aligned, of the storage dtype; copied only if necessary."""
    if array.flags.c_contiguous and array.flags.aligned and array.dtype == DTYPES[dtype].storage:
        return array
    return np.require(array, DTYPES[dtype].storage, ["C", "A"])


class Views(NamedTuple):
    """A piece's arrays (to be kept alive while in use), their addresses, and their format codes; the base's first."""

    arrays: list[np.ndarray]
    addresses: list[int]
    formats: list[int]


def views(piece: Piece) -> Views:
    """Return the arrays, addresses and formats of a piece's operands for the compiled loops."""
    arrays, addresses = [], []
    for operand in piece.pair.operands:
        if operand.address is not None:
            addresses.append(operand.address + piece.start * DTYPES[operand.dtype].size)
            continue
        arrays.append(plain(operand.read(piece.start, piece.stop), operand.dtype))
        addresses.append(address_of(arrays[-1]))
    formats = [
        codes.FORMATS[operand.dtype] | (codes.DELTA if operand.is_delta else 0) for operand in piece.pair.operands
    ]
    return Views(arrays, addresses, formats)


def table(rows: Sequence[Sequence[float]], dtype: type, columns: int) -> np.ndarray:
    """Return an array with one row per job, one column per specialist."""
    return np.array(rows, dtype).reshape(len(rows), columns)


def call(name: str, *arguments: Any) -> None:
    """Run a kernel; arrays are passed as their addresses."""
    kernel(name)(*[address_of(value) if isinstance(value, np.ndarray) else value for value in arguments])


def scratch(rows: int) -> np.ndarray:
    """Working space of a kernel: float64 blocks."""
    return np.empty(rows * BLOCK)


class CompiledBackend:
    """The kernels on the CPU. Each call works on one core and releases the interpreter lock."""

    piece_size = 8 * PIECE  # milliseconds of work: what a call costs in Python is little compared with it
    parallel = True

    def combine(self, jobs: Sequence[Job], program: Program, out_dtype: str) -> Health:
        """See `Backend.combine`."""
        count = len(program.weights)
        inputs = [views(job.piece) for job in jobs]
        targets = [plain(job.out, out_dtype) for job in jobs]
        chances = [self._chances(job.piece, program) for job in jobs]
        both = list(zip(inputs, targets, strict=True))
        health = np.zeros(2, np.int64)
        call(
            "combining.combine_pieces",
            len(jobs),
            count,
            table([[*view.addresses, address_of(target)] for view, target in both], np.int64, count + 2),
            table([[*view.formats, codes.FORMATS[out_dtype]] for view in inputs], np.int64, count + 2),
            np.array([job.piece.length for job in jobs], np.int64),
            np.array([job.piece.start for job in jobs], np.int64),
            table([job.keys or (0,) * count for job in jobs], np.uint64, count),
            *_bounds(jobs, program),
            table([job.factors(program) for job in jobs], np.float64, count),
            table([row.addresses for row in chances], np.int64, count),
            table([job.weights(program) for job in jobs], np.float64, count),
            np.array([job.base_factor(program) for job in jobs], np.float64),
            *_ways(program.ways),
            *_consensus(program),
            int(program.base == "left_out"),
            health,
            scratch(count + 5),
            float(program.consensus.theta) if isinstance(program.consensus, Active) else 0.0,
            float(program.scale),
        )
        for job, target in zip(jobs, targets, strict=True):
            if target is not job.out:
                job.out[:] = target
        return Health(int(health[0]), int(health[1]))

    def _chances(self, piece: Piece, program: Program) -> Views:
        """For `DropByRank`: keep-probabilities, float64 (entries,) per specialist; none (address 0) for others."""
        places = [0] * len(program.weights)
        whole, row = piece.widened_to_rows(), piece.pair.row
        ranked = [(i, way) for i, way in enumerate(program.ways) if isinstance(way, DropByRank)]
        if ranked:
            others = tuple(piece.pair.specialists[i] for i, _ in ranked)
            magnitudes = self.magnitudes([whole._replace(pair=whole.pair._replace(specialists=others))])
            fill = self._fill_short if _short(whole) else self._fill
            chances = np.empty((len(ranked), whole.length))  # one array: several would be fresh pages each time
            for (i, way), sizes, own in zip(ranked, magnitudes, chances, strict=True):
                fill(sizes.reshape(-1, row), way, own.reshape(-1, row))
                places[i] = address_of(own) + 8 * (piece.start - whole.start)
            return Views([chances], places, [])
        return Views([], places, [])

    def _fill_short(self, magnitudes: np.ndarray, drop: DropByRank, chances: np.ndarray) -> None:
        """The probabilities of rows, by keys of 32 bits; of rows that these leave unclear by longer ones."""
        row, place_bits = magnitudes.shape[1], (magnitudes.shape[1] - 1).bit_length()
        keys, left = np.empty(magnitudes.shape, np.uint32), np.empty(len(magnitudes), np.uint8)
        table = drop.density - drop.epsilon + 2.0 * drop.epsilon * (np.arange(2 * row - 1) / 2.0) / float(row - 1)
        shape = keys.size, row, place_bits
        call("ranking.pack_short", magnitudes, *shape, keys)
        keys.sort(axis=1)
        call("ranking.chances_of_short", keys, *shape, table.clip(0.0, 1.0), chances, left, np.empty(row, np.uint32))
        for number in left.nonzero()[0]:
            self._fill(magnitudes[number : number + 1], drop, chances[number : number + 1])

    def _fill(self, magnitudes: np.ndarray, drop: DropByRank, chances: np.ndarray) -> None:
        """The probabilities of rows, by keys of 64 bits: the magnitude above, the place in the row below."""
        row = magnitudes.shape[1]
        keys = magnitudes.astype(np.uint64) << np.uint64(32) | np.arange(row, dtype=np.uint64)
        keys.sort(axis=1)
        call("ranking.chances_of_ranks", keys, keys.size, row, chances, float(drop.density), float(drop.epsilon))

    def magnitudes(self, pieces: Sequence[Piece]) -> np.ndarray:
        """See `Backend.magnitudes`."""
        count, total = len(pieces[0].pair.specialists), sum(piece.length for piece in pieces)
        inputs, out = [views(piece) for piece in pieces], np.empty((count, total), np.uint32)
        call(
            "scanning.magnitudes",
            len(pieces),
            count,
            table([view.addresses for view in inputs], np.int64, count + 1),
            table([view.formats for view in inputs], np.int64, count + 1),
            np.array([piece.length for piece in pieces], np.int64),
            total,
            out,
            scratch(3),
        )
        return out

    def scan(self, pieces: Sequence[Piece], queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.scan`. Every worker counts for itself; whole numbers are added at the end."""
        bins = max(query.bins for query in queries)
        columns = (
            np.array([query.specialist for query in queries], np.int64),
            np.array([query.low for query in queries], np.uint32),
            np.array([query.high for query in queries], np.uint32),
            np.array([query.shift for query in queries], np.uint32),
        )

        def run(share: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
            above, histogram = np.zeros(len(queries), np.int64), np.zeros((len(queries), bins), np.int64)
            space = scratch(4)
            for piece in share:
                inputs = views(piece)
                call(
                    "scanning.count_in_brackets",
                    len(piece.pair.specialists),
                    np.array(inputs.addresses, np.int64),
                    np.array(inputs.formats, np.int64),
                    piece.length,
                    len(queries),
                    *columns,
                    above,
                    bins,
                    histogram,
                    space,
                )
            return above, histogram

        workers = min(threads(), len(pieces))
        results = map_on_threads(run, [pieces[worker::workers] for worker in range(workers)])
        above, histogram = results[0]
        for more_above, more in results[1:]:
            above += more_above
            histogram += more
        return above, histogram

    def gram(self, piece: Piece, models: bool) -> np.ndarray:
        """See `Backend.gram`."""
        count = len(piece.pair.specialists)
        sums, space = [], scratch(count + 4)
        for part in pieces_of(piece.pair, PIECE, piece.start, piece.stop):
            inputs, partial = views(part), np.zeros((count, count, _FOLDED))
            where = np.array(inputs.addresses, np.int64), np.array(inputs.formats, np.int64)
            call("scanning.gram_of_piece", count, *where, part.length, int(models), _FOLDED, partial, space)
            sums.append(partial[:, :, 0])
        return np.stack(sums)

    def masses(self, piece: Piece, program: Program, keys: Sequence[int]) -> np.ndarray:
        """See `Backend.masses`."""
        count = len(piece.pair.specialists)
        sums, space, key_table = [], scratch(count + 5), np.array(keys, np.uint64)
        ways = _ways([None if isinstance(way, KeepLargest) else _unscaled(way) for way in program.ways])
        for part in pieces_of(piece.pair, PIECE, piece.start, piece.stop):
            inputs, partial = views(part), np.zeros((2, count, _FOLDED))
            where = np.array(inputs.addresses, np.int64), np.array(inputs.formats, np.int64)
            chances = self._chances(part, program)
            random = part.start, key_table, *ways, np.array(chances.addresses, np.int64)
            call("scanning.mass_of_piece", count, *where, part.length, *random, _FOLDED, partial, space)
            sums.append(partial[:, :, 0])
        return np.stack(sums)


def _unscaled(way: DropRandom | DropByRank | None) -> Sparsify | None:
    """The same drop, survivors as they are."""
    return None if way is None else replace(way, rescale="none")


def _short(piece: Piece) -> bool:
    """Whether keys of 32 bits will mostly do: see `ranking`."""
    return 1 < piece.pair.row <= _LONGEST_SHORT and all(o.dtype in ("BF16", "F16") for o in piece.pair.operands)


def _bounds(jobs: Sequence[Job], program: Program) -> tuple[np.ndarray, np.ndarray]:
    """low, high as `combine_pieces` takes them."""
    count = len(program.weights)
    if not any(isinstance(way, KeepLargest) for way in program.ways):
        return (np.zeros((len(jobs), count)),) * 2
    low = _least(table([job.measured.lowest or () for job in jobs], np.float32, count))
    return low, _most(table([job.measured.highest or () for job in jobs], np.float32, count))


def _least(low: np.ndarray) -> np.ndarray:
    """The least float64 that are at least `low` when rounded to float32: comparing as float64 is twice as fast."""
    with np.errstate(over="ignore"):
        below = np.nextafter(low, np.float32(-np.inf)).clip(-_BEYOND, _BEYOND)
        middle = (low.astype(np.float64).clip(-_BEYOND, _BEYOND) + below) / 2
        least = np.where(middle.astype(np.float32) >= low, middle, np.nextafter(middle, np.inf))
        return np.where(np.isneginf(low), low, least)


def _most(high: np.ndarray) -> np.ndarray:
    """The largest float64 that are at most `high` when rounded to float32."""
    return -_least(-high)


def _ways(ways: Sequence[Sparsify | None]) -> tuple[np.ndarray, np.ndarray]:
    """sparsify, limits as the kernels take them."""
    limits = [keep_limit(way.density) if isinstance(way, DropRandom) else 0 for way in ways]
    return np.array([_code(way) for way in ways], np.int64), np.array(limits, np.uint64)


def _code(way: Sparsify | None) -> int:
    if isinstance(way, KeepLargest):
        return codes.KEEP_BETWEEN
    if isinstance(way, DropRandom):
        return codes.DROP_RANDOM
    if isinstance(way, DropByRank):
        return codes.DROP_BY_RANK_RESCALED if way.rescale == "own_probability" else codes.DROP_BY_RANK
    return codes.KEEP_ALL


def _consensus(program: Program) -> tuple[int, int, int, int]:
    """consensus, vote, average, minimum as `combine_pieces` takes them."""
    how = program.consensus
    if isinstance(how, Elect):
        return codes.ELECT, codes.VOTES[how.elect], codes.AVERAGES[how.average], 0
    if isinstance(how, Active):
        return codes.ACTIVE, 0, 0, how.minimum
    return codes.LARGEST if isinstance(how, Largest) else codes.SUM, 0, 0, 0
