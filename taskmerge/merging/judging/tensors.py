"""Comparison of one tensor of a merge with the planned one: entry by entry, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from taskmerge.checkpoints.output.saving import converted
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.kernels import Program, Sum
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.steps import TensorStep
from taskmerge.numbers.rounding import decode, step

CHUNK = 1 << 20
_MOST_RANGES = 4
_LEAST_TELLING = 4
"""Entries of a row that must differ from the base's for the row to say that it fits."""

Status = Literal["exact", "rounding", "base", "other weights", "torn", "other", "missing", "extra", "another shape"]
FITS: frozenset[Status] = frozenset(("exact", "rounding"))


@dataclass(frozen=True)
class Sides:
    """The models that are compared, all with the same tensor names.

    planned: the result of the recipe, rounded to the formats of `merged`. merged: the model that is judged. base: the
    recipe's base. fused: the plan behind `planned`. labels: the specialists, if every merged tensor is a plain weighted
    sum of their deltas; () otherwise.
    """

    planned: StateDict
    merged: StateDict
    base: StateDict
    fused: FusedStateDict
    labels: tuple[str, ...]

    def step(self, name: str) -> TensorStep | None:
        """Return the planned step of a tensor if it merges; else None."""
        found = self.fused.steps.get(name)
        return found if found is not None and found.action == "merge" else None

    @property
    def most_units(self) -> int:
        """Steps of the number format that a sum may be off by when every weighted delta, every partial sum and the
        result are rounded into that format, half a step each."""
        return len(self.fused.plan.inputs)


@dataclass
class Finding:
    """The result of comparing one tensor.

    entries: their number. off: entries whose bits are not the planned ones. beyond: entries whose distance is more than
    rounding. largest: the largest distance, in steps of the format. telling: whether the planned tensor differs from
    the base's, so that the two can be distinguished; for a tensor within rounding, by more than that. unchanged:
    whether it is bit for bit the base's; None if the base does not have it. rows: meaning of the rows, if only some
    agree. gram, moment: of the least-squares fit of the difference to the base. drift: Σ (y - e) u, Σ u², Σ (y - e)²
    with the stored value y, the planned value e, and the planned change u.
    """

    name: str
    component: str
    status: Status
    entries: int = 0
    off: int = 0
    beyond: int = 0
    largest: float = 0.0
    telling: bool = True
    unchanged: bool | None = None
    rows: tuple[str, ...] = ()
    drift: np.ndarray = field(default_factory=lambda: np.zeros(3), repr=False)
    gram: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    moment: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)


def compared(sides: Sides, name: str, component: str) -> Finding:
    """Compare one tensor that both models have."""
    planned, merged = sides.planned.tensors[name], sides.merged.tensors[name]
    kinds = planned.format.mergeable, merged.format.mergeable
    if planned.shape != merged.shape or kinds[0] != kinds[1] or (not kinds[0] and planned.dtype != merged.dtype):
        return Finding(name, component, "another shape", merged.count)
    found = Finding(name, component, "other", merged.count)
    count = len(sides.labels) or 1
    found.gram, found.moment = np.zeros((count, count)), np.zeros(count)
    rows, of_base, told_apart, clearly = _Rows(), 0, 0, 0
    for start, stop, width in _spans(merged.shape):
        y, e = sides.merged.read(name, start, stop), sides.planned.read(name, start, stop)
        equal, b = same_bits(y, e), _base_entries(sides, name, start, stop)
        own = same_bits(y, b) if b is not None else np.zeros(len(equal), bool)
        telling = ~same_bits(e, b) if b is not None else np.ones(len(equal), bool)
        units = (
            _units(sides, name, (start, stop, width), y, e, equal, found) if kinds[0] else np.where(equal, 0.0, np.inf)
        )
        found.off += int((~equal).sum())
        found.largest = max(found.largest, float(units.max(initial=0.0)))
        found.beyond += int((units > sides.most_units).sum())
        of_base += int(own.sum())
        told_apart += int(telling.sum())
        clear = telling if b is None or not kinds[0] else _clear(sides, name, (start, stop, width), e, b)
        clearly += int(clear.sum())
        filled: np.ndarray = np.asarray(y.view(np.uint8).reshape(len(equal), -1).any(axis=1))
        rows.add(np.asarray(units <= sides.most_units), own, filled, clear | (equal & telling), width)
    has_base = name in sides.base.tensors
    found.unchanged = of_base == merged.count and sides.base.tensors[name].dtype == merged.dtype if has_base else None
    found.telling = told_apart > 0
    if not found.off:
        found.status = "exact"
    elif has_base and of_base == merged.count:
        found.status = "base"
    elif found.largest <= sides.most_units:
        found.status, found.telling = "rounding", clearly > 0
    elif rows.some_fit:
        found.status, found.rows = "torn", rows.ranges()
    return found


def _base_entries(sides: Sides, name: str, start: int, stop: int) -> np.ndarray | None:
    """The base's entries in the format of the merged model; None where the base has no such tensor."""
    base, merged = sides.base.tensors.get(name), sides.merged.tensors[name]
    if base is None or base.shape != merged.shape or base.format.mergeable != merged.format.mergeable:
        return None
    if base.dtype != merged.dtype and not base.format.mergeable:
        return None
    return converted(sides.base.read(name, start, stop), base.dtype, merged.dtype)


def explained(sides: Sides, name: str, weights: np.ndarray) -> bool:
    """Return whether a tensor equals the base plus its deltas times these weights, within rounding."""
    info = sides.merged.tensors[name]
    for start, stop, width in _spans(info.shape):
        y = decode(sides.merged.read(name, start, stop), info.dtype)
        b, deltas = _directions(sides, name, start, stop)
        away = np.abs(y - (b + weights @ deltas))
        allowed = step(_size(sides, b, deltas, weights, y, width), info.dtype)
        if not (away <= sides.most_units * allowed).all():
            return False
    return True


def is_linear(program: Program | None) -> bool:
    """Return whether a merge adds only weighted deltas to the base."""
    return (
        program is not None
        and isinstance(program.consensus, Sum)
        and not any(program.ways)
        and program.from_gram is None
        and program.base == "added"
    )


def same_bits(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return a mask of the entries with the same bits: bool (entries,)."""
    size = max(len(one), 1)
    alike: np.ndarray = one.view(np.uint8).reshape(size, -1) == two.view(np.uint8).reshape(size, -1)
    rows: np.ndarray = np.asarray(alike.all(axis=1))
    return rows[: len(one)]


def _spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Entries [start, stop) in whole rows, and the width of a row."""
    width, rows = math.prod(shape[1:]), shape[0] if shape else 1
    if not width or not rows:
        return
    at_once = max(1, CHUNK // width)
    for row in range(0, rows, at_once):
        yield row * width, min(row + at_once, rows) * width, width


def _units(
    sides: Sides,
    name: str,
    span: tuple[int, int, int],
    y: np.ndarray,
    e: np.ndarray,
    equal: np.ndarray,
    found: Finding,
) -> np.ndarray:
    """How far each entry is from the planned one, in steps of its format at the largest number that went into it; adds
    to the fit of what was added to the base."""
    (start, stop, width), dtype = span, sides.merged.tensors[name].dtype
    own, planned = decode(y, dtype), decode(e, dtype)
    size = np.maximum(np.abs(own), np.abs(planned))
    if sides.step(name) is not None:
        b, deltas = _directions(sides, name, start, stop, planned)
        with np.errstate(invalid="ignore"):
            added = np.where(np.isfinite(own - b), own - b, 0.0)
        found.gram += deltas @ deltas.T
        found.moment += deltas @ added
        said = _said(sides, name) if sides.labels else np.ones(1)
        size = _size(sides, b, deltas, said, planned, width)
        with np.errstate(invalid="ignore"):
            gap = np.where(np.isfinite(own - planned), own - planned, 0.0)
        added = said @ deltas
        found.drift += gap @ added, added @ added, gap @ gap
    with np.errstate(invalid="ignore"):
        away = np.abs(own - planned) / step(np.where(np.isfinite(size), size, 1.0), dtype)
    return np.where(equal, 0.0, np.nan_to_num(away, nan=np.inf, posinf=np.inf))


def _clear(sides: Sides, name: str, span: tuple[int, int, int], e: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where the planned entries are further from the base's than rounding may bring them: bool (entries,)."""
    dtype = sides.merged.tensors[name].dtype
    planned, own = decode(e, dtype), decode(b, dtype)
    size = np.abs(own) + np.abs(planned)
    with np.errstate(invalid="ignore"):
        return np.abs(planned - own) > sides.most_units * step(np.where(np.isfinite(size), size, 1.0), dtype)


def _size(
    sides: Sides, b: np.ndarray, deltas: np.ndarray, weights: np.ndarray, result: np.ndarray, width: int
) -> np.ndarray:
    """The largest number that may have occurred in the computation of an entry: float64 (entries,).

    An adapter's product is a sum itself, with partial sums about as large as the largest entries of its row.
    """
    sizes = np.abs(deltas)
    for row, label in enumerate(sides.labels):
        if label in sides.fused.plan.adapters:
            sizes[row] = np.repeat(sizes[row].reshape(-1, width).max(axis=1), width)
    return np.abs(b) + np.maximum(np.abs(result), np.abs(weights) @ sizes)


def _directions(
    sides: Sides, name: str, start: int, stop: int, planned: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The base's entries, and what may have been added to them: float64 (entries,), (directions, entries)."""
    merging, plan = sides.step(name), sides.fused.plan
    assert merging is not None
    source = merging.source.name
    b = decode(plan.base.read(source, start, stop), plan.base.tensors[source].dtype)
    if sides.labels:
        deltas = np.zeros((len(sides.labels), stop - start))
        for one in merging.specialists:
            row = sides.labels.index(one.label)
            deltas[row] = sides.fused.operands.part_of_delta(merging, one, start, stop)
        return b, deltas
    if planned is None:
        planned = decode(sides.planned.read(name, start, stop), sides.planned.tensors[name].dtype)
    return b, (planned - b)[None]


def _said(sides: Sides, name: str) -> np.ndarray:
    """The weight that the plan gives each specialist in a tensor: (specialists,)."""
    merging = sides.step(name)
    assert merging is not None
    program = sides.fused.plan.program(merging)
    weights = np.zeros(len(sides.labels))
    for one, weight in zip(merging.specialists, merging.weights, strict=True):
        weights[sides.labels.index(one.label)] = float(weight) * (program.scale if program is not None else 1.0)
    return weights


_ROWS = ("fit", "are zero", "equal the base's", "fit no weights")
_ROW = ("fits", "is zero", "equals the base's", "fits no weights")


class _Rows:
    """The meaning of each row of a tensor, and the rows that belong together."""

    def __init__(self) -> None:
        self._kinds: list[np.ndarray] = []
        self._fitting = 0
        self._some_fit = False

    @property
    def some_fit(self) -> bool:
        """Whether rows fit, and hardly by chance: entries of a vector may, one here and one there."""
        return self._some_fit or (self._fitting >= _LEAST_TELLING and len(self._cuts()) - 1 <= _MOST_RANGES)

    def _cuts(self) -> list[int]:
        kinds = np.concatenate(self._kinds)
        return [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]

    def add(self, within: np.ndarray, own: np.ndarray, nonzero: np.ndarray, telling: np.ndarray, width: int) -> None:
        """Some more whole rows. All bool, of entries."""
        within, own, nonzero, telling = (flags.reshape(-1, width) for flags in (within, own, nonzero, telling))
        kinds = np.full(len(within), 3, np.uint8)
        kinds[own.all(axis=1)] = 2
        kinds[~nonzero.any(axis=1)] = 1
        kinds[within.all(axis=1)] = 0
        self._kinds.append(kinds)
        self._fitting += int(telling[kinds == 0].sum()) if width == 1 else 0
        self._some_fit |= bool(((kinds == 0) & (telling.sum(axis=1) >= _LEAST_TELLING)).any()) and width > 1

    def ranges(self) -> tuple[str, ...]:
        """The content of ranges of rows; for scattered rows, their number by kind."""
        kinds = np.concatenate(self._kinds)
        cuts = self._cuts()
        if len(cuts) - 1 <= _MOST_RANGES:
            return tuple(_of_rows(low, high, kinds[low]) for low, high in pairwise(cuts))
        counts = np.bincount(kinds, minlength=4)
        return tuple(
            f"{count:,} of {len(kinds):,} rows {word}" for count, word in zip(counts, _ROWS, strict=True) if count
        )


def _of_rows(low: int, high: int, kind: int) -> str:
    return f"row {low} {_ROW[kind]}" if high - low == 1 else f"rows {low} to {high - 1} {_ROWS[kind]}"
