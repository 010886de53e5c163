"""Thresholds over a whole model, found in passes that several processes may share.

A pass counts; counts are added, from any process. So each process scans some of the tensors, writes what it counted as
JSON, and the sum is what one process would have counted over all of them: the thresholds are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from taskmerge.errors import MergeError
from taskmerge.kernels.measuring import Bounds, Search
from taskmerge.kernels.operands import Operand
from taskmerge.kernels.pairs import Backend, Pair
from taskmerge.kernels.program import KeepLargest
from taskmerge.kernels.selection import RAGGED

Row = tuple[Operand, Sequence[Operand | None]]


class Bracket(TypedDict):
    """The state of one query: the bits between which its answer is, or the answer."""

    low: int
    high: int
    bits: int | None


class Counts(TypedDict):
    """The counts of one pass for one query.

    above: entries over its bracket. bins: number of a bin -> entries in it. ragged: bins with entries that are not at
    their start.
    """

    above: int
    bins: dict[str, int]
    ragged: list[int]


class _Group(NamedTuple):
    """Specialists that are searched together: their columns, the numbers of the rows, and the search."""

    columns: list[int]
    rows: list[int]
    pairs: list[Pair]
    search: Search


class ModelSearch:
    """`measure_model` in rounds. tensors, keeps: as there.

    Raises MergeError: a row has another number of columns than `keeps`, or a tensor another shape than the base's.
    """

    def __init__(self, backend: Backend, tensors: Sequence[Row], keeps: Sequence[Sequence[KeepLargest]]) -> None:
        for base, columns in tensors:
            if len(columns) != len(keeps):
                raise MergeError(f"{len(columns)} specialists in one row, but the model has {len(keeps)}")
            check_shapes(Pair(base, tuple(column for column in columns if column is not None)))
        self._keeps = keeps
        trimmed = [i for i, ways in enumerate(keeps) if ways]
        whole = [(number, base, columns) for number, (base, columns) in enumerate(tensors) if base.count]
        together = all(columns[i] is not None for _, _, columns in whole for i in trimmed)
        self._groups: list[_Group] = []
        for group in [trimmed] if together and trimmed else [[i] for i in trimmed]:
            found = [
                (number, Pair(base, tuple(present)))
                for number, base, columns in whole
                if len(present := [one for i in group if (one := columns[i]) is not None]) == len(group)
            ]
            pairs = [pair for _, pair in found]
            search = Search(backend, pairs, [keeps[i] for i in group])
            self._groups.append(_Group(group, [number for number, _ in found], pairs, search))

    @property
    def done(self) -> bool:
        """True if every query has an answer."""
        return not any(group.search.open for group in self._groups)

    def sample(self) -> None:
        """Look at a sample of all tensors: the first thing to do."""
        for group in self._groups:
            group.search.sample()

    def find(self) -> list[Bounds]:
        """Make all passes, over all rows, in this process."""
        self.sample()
        for group in self._groups:
            while group.search.open:
                group.search.narrow(*group.search.scan())
        return self.bounds()

    def scan(self, rows: Collection[int] | None = None) -> list[Counts]:
        """Make one pass over the rows with these numbers, or over all: counts for each open query."""
        found: list[Counts] = []
        for group in self._groups:
            if group.search.open:
                pairs = [pair for row, pair in zip(group.rows, group.pairs, strict=True) if rows is None or row in rows]
                found += [_counted(int(above), bins) for above, bins in zip(*group.search.scan(pairs), strict=True)]
        return found

    def narrow(self, parts: Sequence[Sequence[Counts]]) -> None:
        """Take in what was counted over all rows, in as many parts as there were."""
        sums = [_added(counts) for counts in zip(*parts, strict=True)]
        for group in self._groups:
            queries = group.search.open
            own, sums = sums[: len(queries)], sums[len(queries) :]
            if queries:
                histogram = np.zeros((len(queries), max(query.bins for query in queries)), np.int64)
                for row, counts in zip(histogram, own, strict=True):
                    for number, count in counts["bins"].items():
                        row[int(number)] = count
                    row[counts["ragged"]] += RAGGED
                group.search.narrow(np.array([counts["above"] for counts in own], np.int64), histogram)

    def brackets(self) -> list[Bracket]:
        """Return the state of every query, from which another process can continue."""
        return [
            {"low": query.low, "high": query.high, "bits": query.bits}
            for group in self._groups
            for query in group.search.queries
        ]

    def go_on_from(self, brackets: Sequence[Bracket]) -> None:
        """Adopt the results of another process. Raises MergeError where it searched for something else."""
        queries = [query for group in self._groups for query in group.search.queries]
        if len(queries) != len(brackets):
            raise MergeError(f"{len(brackets)} thresholds were measured, but {len(queries)} are needed")
        for query, bracket in zip(queries, brackets, strict=True):
            query.low, query.high, query.bits = bracket["low"], bracket["high"], bracket["bits"]

    def bounds(self) -> list[Bounds]:
        """Return the bounds that the search found, see `measure_model`."""
        found: list[Bounds] = [{} for _ in self._keeps]
        for group in self._groups:
            for i, rows in zip(group.columns, group.search.bounds(), strict=True):
                found[i] = rows
        return found


def check_shapes(pair: Pair) -> None:
    """Report a caller's mistake before any byte is read through a wrong address. Raises MergeError."""
    if pair.base.is_delta:
        raise MergeError("the base is given as a task vector")
    for operand in pair.specialists:
        if operand.shape != pair.base.shape:
            raise MergeError(f"a specialist's tensor has shape {operand.shape}, the base's {pair.base.shape}")


def _counted(above: int, histogram: np.ndarray) -> Counts:
    filled = np.flatnonzero(histogram)
    counts = histogram[filled] & (RAGGED - 1)
    ragged = filled[(histogram[filled] & -RAGGED) != 0]
    bins: Mapping[str, int] = {str(bin_): int(count) for bin_, count in zip(filled, counts, strict=True)}
    return {"above": above, "bins": dict(bins), "ragged": [int(bin_) for bin_ in ragged]}


def _added(parts: Sequence[Counts]) -> Counts:
    bins: dict[str, int] = {}
    for part in parts:
        for bin_, count in part["bins"].items():
            bins[bin_] = bins.get(bin_, 0) + count
    ragged = sorted({bin_ for part in parts for bin_ in part["ragged"]})
    return {"above": sum(part["above"] for part in parts), "bins": bins, "ragged": ragged}
