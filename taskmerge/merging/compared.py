"""The task vectors of a planned merge side by side, and what became of them: one more pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from taskmerge.checkpoints.components import layer_index
from taskmerge.kernels import KeepLargest
from taskmerge.kernels.program import DropByRank, DropRandom
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.steps import TensorStep
from taskmerge.numbers.rounding import decode

CHUNK = 1 << 20
MERGED = "merged"
"""What the merged task vector is called among the specialists', where no specialist is called so."""


def layer_of(name: str, component: str) -> str:
    """Return the row of a tensor in tables by layer: "backbone.3", or the component for a tensor outside layers."""
    index = layer_index(name)
    return component if index is None else f"{component}.{index}"


def compare_planned(fused: FusedStateDict, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Read every tensor that is merged once more, and merge it again.

    Args:
        fused: the merge. The deltas are those that the method was given: of an adapter its product, under `protect`
            without the protected directions.
        progress: called with the number of bytes compared since the last call.

    Returns:
        The tables of `algebra.comparison.compare_task_vectors`, with the merged task vector among the norms, cosines
        and layers; "merged": what it is called there; "kept": component -> specialist -> share of entries left by
        trimming (counted) and by random drops (the density that was set).
    """
    sums = _Sums(fused)
    for step in fused.plan.steps:
        if step.action == "merge":
            sums.add(step, progress)
    return sums.tables()


class _Sums:
    """What is summed up over all tensors. The last row and column are the merged task vector's."""

    def __init__(self, fused: FusedStateDict) -> None:
        self._fused = fused
        steps = [step for step in fused.plan.steps if step.action == "merge"]
        self.labels = list(dict.fromkeys(source.label for step in steps for source in step.specialists))
        self.merged = MERGED
        while self.merged in self.labels:
            self.merged += " result"
        size = len(self.labels) + 1
        self.products, self.shared = np.zeros((size, size)), np.zeros((2, size, size))
        """Σ <d_i, d_j>; of each pair the squared norms over the tensors that both have."""
        self.both, self.opposed = np.zeros((size, size)), np.zeros((size, size))
        self.base = 0.0
        self.layers: dict[str, dict[str, float]] = {}
        self.kept: dict[str, dict[str, list[float]]] = {}

    def add(self, step: TensorStep, progress: Callable[[int], None]) -> None:
        """Take in one tensor."""
        places = [*(self.labels.index(source.label) for source in step.specialists), len(self.labels)]
        at = np.ix_(places, places)
        gram = np.zeros((len(places), len(places)))
        bounds = self._bounds(step)
        counts = [0.0] * len(step.specialists)
        for start in range(0, step.info.count, CHUNK):
            stop = min(start + CHUNK, step.info.count)
            rows = self._rows(step, start, stop)
            gram += rows @ rows.T
            signs = np.sign(rows).astype(np.float32)
            moved = np.abs(signs)
            both = moved @ moved.T
            self.both[at] += both
            self.opposed[at] += (both - signs @ signs.T) / 2
            for place, (low, high) in bounds.items():
                size = np.abs(rows[place]).astype(np.float32)
                counts[place] += float(np.count_nonzero((size >= low) & (size <= high) & (size > 0)))
            progress((stop - start) * np.dtype(step.info.format.storage).itemsize)
        self.products[at] += gram
        squares = np.diag(gram)
        self.shared[0][at] += squares[:, None]
        self.shared[1][at] += squares[None, :]
        self._add_layer(step, squares)
        self._add_kept(step, bounds, counts)

    def _rows(self, step: TensorStep, start: int, stop: int) -> np.ndarray:
        """(specialists + 1, entries) float64. Entries in which all inputs hold the same infinity have not moved."""
        operands = self._fused.operands
        stored = operands.base(step)
        base = decode(stored.read(start, stop), stored.dtype)
        merged = decode(self._fused.read(step.info.name, start, stop), step.info.dtype)
        self.base += float(base[np.isfinite(base)] @ base[np.isfinite(base)])
        with np.errstate(invalid="ignore"):
            deltas = [operands.part_of_delta(step, source, start, stop) for source in step.specialists]
            rows = np.stack([*deltas, merged if self._fused.plan.bare else merged - base])
        return np.where(np.isfinite(rows), rows, 0.0)

    def _bounds(self, step: TensorStep) -> dict[int, tuple[float, float]]:
        """Place of a specialist among the step's -> the magnitudes between which its entries are kept."""
        program = self._fused.plan.program(step)
        found = None if program is None or not program.measured else self._fused.measurement(step)
        if program is None or found is None or found.lowest is None or found.highest is None:
            return {}
        streamed = self._fused.plan.streamed(step)
        assert streamed is not None
        ways = streamed.program.ways
        return {
            step.specialists.index(source): (np.float32(low), np.float32(high))  # type: ignore[misc]
            for source, way, low, high in zip(streamed.sources, ways, found.lowest, found.highest, strict=True)
            if isinstance(way, KeepLargest)
        }

    def _add_layer(self, step: TensorStep, squares: np.ndarray) -> None:
        row = self.layers.setdefault(layer_of(step.info.name, step.component), {})
        for name, square in zip([*(source.label for source in step.specialists), self.merged], squares, strict=True):
            row[name] = row.get(name, 0.0) + float(square)

    def _add_kept(self, step: TensorStep, bounds: Mapping[int, Any], counts: list[float]) -> None:
        program = self._fused.plan.program(step)
        for place, (source, way) in enumerate(zip(step.specialists, program.ways if program else (), strict=False)):
            if place in bounds:
                left = counts[place]
            elif isinstance(way, DropRandom | DropByRank):
                left = way.density * step.info.count
            else:
                continue
            total = self.kept.setdefault(step.component, {}).setdefault(source.label, [0.0, 0.0])
            total[0] += left
            total[1] += step.info.count

    def tables(self) -> dict[str, Any]:
        """Everything as plain data."""
        names = [*self.labels, self.merged]
        lengths = np.sqrt(np.diag(self.products))
        base = math.sqrt(self.base)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = self.products / np.sqrt(self.shared[0] * self.shared[1])
            conflict = self.opposed / self.both
        kept = {part: {name: left / count for name, (left, count) in row.items() if count}
                for part, row in self.kept.items()}  # fmt: skip
        return {
            "norms": {name: [float(length), float(length) / base if base else math.nan]
                      for name, length in zip(names, lengths, strict=True)},
            "cosine": _table(names, cosine),
            "sign_conflict": _table(self.labels, conflict),
            "by_layer": {layer: {name: math.sqrt(square) for name, square in row.items()}
                         for layer, row in self.layers.items()},
            "merged": self.merged,
            "kept": kept,
            "warnings": [],
        }  # fmt: skip


def _table(names: list[str], matrix: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        one: {two: float(matrix[down, across]) for across, two in enumerate(names)} for down, one in enumerate(names)
    }
