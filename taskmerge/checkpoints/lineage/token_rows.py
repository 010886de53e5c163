"""Token tables of every input brought to the output's rows, read row by row, nothing copied ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from taskmerge.checkpoints.lineage.tokenizers import Rows
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.numbers.rounding import decode, encode


class MatchedTokens(StateDict):
    """`StateDict` of one input whose token tables have the output's rows.

    A row the input lacks is the base's, so that it changes nothing. A row the base lacks is, in every input, the mean
    of the rows of the inputs that have it; with `Rows.own_rows` an input that has it keeps its own. A row that the user
    gave stands in for what an input lacks, and for what it has where that was said. tables: names of the tensors with
    one row per token. inputs: all, by label. config: the input's, speaking of the output's rows.
    """

    def __init__(
        self,
        label: str,
        inputs: Mapping[str, StateDict],
        tables: set[str],
        rows: Rows,
        base: str,
        config: Mapping[str, Any],
    ) -> None:
        self.source = inputs[label]
        self.label = self.source.label
        self.beside = replace(self.source.beside, config=config)
        self._label, self._inputs, self._rows, self._base = label, inputs, rows, base
        self._tables = {name for name in tables if name in self.source.tensors}
        self.tensors = {
            name: self._header(name, info) if name in self._tables else info
            for name, info in self.source.tensors.items()
        }

    def _header(self, name: str, info: TensorInfo) -> TensorInfo:
        base = self._inputs[self._base].tensors.get(name)
        formats = {info.dtype} | ({base.dtype} if base else set())
        wide = info.dtype if len(formats) == 1 or self._label == self._base else "F64" if "F64" in formats else "F32"
        return replace(info, dtype=wide, shape=(self._rows.count, *info.shape[1:]))

    def delta(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.delta`; rows of token tables are matched, and have none."""
        return None if name in self._tables else self.source.delta(name)

    def unrounded(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.unrounded`."""
        return None if name in self._tables else self.source.unrounded(name)

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        return self.source.stored_name(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        if name not in self._tables:
            return self.source.read(name, start, stop)
        info = self.tensors[name]
        width = math.prod(info.shape[1:])
        stop = info.count if stop is None else min(stop, info.count)
        first, last = start // width, -(-stop // width)
        entries = np.concatenate([self._run(name, *run, width) for run in self._runs(first, last)] or [np.empty(0)])
        return encode(entries[start - first * width : stop - first * width], info.dtype)

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """(start, stop, own): stretches of output rows the input and the base have, row after row, and the others."""
        base, mine = self._rows.of[self._base][first:last], self._rows.of[self._label][first:last]
        own = mine.copy() if self._rows.own_rows else np.where(base < 0, -1, mine)
        for row, given in self._rows.given.items():
            if first <= row < last:
                own[row - first] = -1 if given.force else mine[row - first]
        follows = ((np.diff(own) == 1) & (own[:-1] >= 0)) | ((own[1:] < 0) & (own[:-1] < 0))
        breaks = np.flatnonzero(~follows) + 1
        edges = [0, *breaks.tolist(), len(own)]
        for start, stop in pairwise(edges):
            if start < stop:
                yield first + start, first + stop, own[start] >= 0

    def _run(self, name: str, start: int, stop: int, own: bool, width: int) -> np.ndarray:
        """Rows [start, stop) of the output, flat, float64."""
        if own:
            return _rows(self.source, name, int(self._rows.of[self._label][start]), stop - start, width)
        return np.concatenate([self._borrowed(name, row, width) for row in range(start, stop)])

    def _borrowed(self, name: str, row: int, width: int) -> np.ndarray:
        base = self._inputs[self._base]
        given = self._rows.given.get(row)
        from_base = int(self._rows.of[self._base][row])
        if from_base >= 0 and name in base.tensors and given is None:
            return _rows(base, name, from_base, 1, width)
        if given is not None:
            sources = {} if given.label is None else {given.label: given.row}
        else:
            sources = {label: int(own[row]) for label, own in self._rows.of.items() if own[row] >= 0}
        found = [
            _rows(self._inputs[label], name, there, 1, width)
            for label, there in sources.items()
            if name in self._inputs[label].tensors
        ]
        value = np.mean(found, axis=0) if found else np.zeros(width)
        # As the base stores it, so that every input that borrows the row differs from the base by nothing.
        dtype = base.tensors[name].dtype if name in base.tensors else self.tensors[name].dtype
        return decode(encode(value, dtype), dtype)


def _rows(state_dict: StateDict, name: str, first: int, count: int, width: int) -> np.ndarray:
    return decode(state_dict.read(name, first * width, (first + count) * width), state_dict.tensors[name].dtype)
