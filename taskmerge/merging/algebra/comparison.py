"""Several task vectors side by side, and two checkpoints tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.checkpoints.lineage.alignment import align_all
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.declarations import Named, checked_arguments
from taskmerge.errors import InputError, UsageError
from taskmerge.merging.algebra.checkpoint import Checkpoint, task_vector
from taskmerge.merging.algebra.task_vector import CHUNK, TaskVector
from taskmerge.merging.compared import layer_of
from taskmerge.numbers.rounding import decode
from taskmerge.words.tables import Shown, Table

if TYPE_CHECKING:
    from taskmerge.merging.algebra.sources import Source


class Comparison(Shown, dict[str, Any]):
    """The result of `compare_task_vectors`: plain tables for JSON."""

    def in_one_line(self) -> str:
        """Return the names of the specialists, see `Shown`."""
        return f"of {', '.join(self.get('norms', ())) or 'nothing'}"

    def as_table(self) -> Table:
        """Return one row per task vector with its cosine and sign conflict with each other one, see `Shown`."""
        names = list(self.get("norms", ()))
        rows = (
            (
                name, *self["norms"][name],
                *(self["cosine"][name].get(other) for other in names),
                *(self["sign_conflict"][name].get(other) for other in names),
            )
            for name in names
        )  # fmt: skip
        columns = [f"{what} {other}" for what in ("cosine", "sign_conflict") for other in names]
        return Table(("task vector", "norm", "relative_norm", *columns), rows, len(names))


@checked_arguments(specialists=Named("models"))
def compare_task_vectors(base: Source, specialists: Mapping[str, Source]) -> Comparison:
    """Compute norms (absolute and relative to the base's), cosines, sign conflicts, and norms by layer of task vectors.

    Args:
        base: what `Checkpoint.open` takes.
        specialists: name -> the same.

    Returns:
        Plain tables for JSON: "norms" name -> [norm, relative to the base over the same tensors], "cosine" and
        "sign_conflict" name -> name -> number, "by_layer" layer -> name -> norm, and "warnings": settings in which the
        configs differ from the base's.

    Raises:
        UsageError: without a specialist.

    >>> models = {name: {"w": torch.tensor(values)} for name, values in (("a", [1.0, 2.0]), ("b", [2.0, -1.0]))}
    >>> found = compare_task_vectors({"w": torch.zeros(2)}, models)
    >>> found["cosine"]["a"]["b"], found["sign_conflict"]["a"]["b"]
    (0.0, 0.5)
    """
    if not specialists:
        raise UsageError("nothing to compare", next_move="give the base, then at least one specialist")
    start = Checkpoint.open(base)
    each = {name: task_vector(source, start, name) for name, source in specialists.items()}
    vectors = {name: vector.aligned_with(*each.values()) for name, vector in each.items()}
    per_tensor = {name: vector.norms() for name, vector in vectors.items()}
    shared = [name for name in next(iter(vectors.values())).shapes if name in start.numbers.tensors]
    base_norm = math.sqrt(math.fsum(_square(start.numbers, name) for name in shared))
    totals = {name: math.hypot(*norms.values()) for name, norms in per_tensor.items()}
    return Comparison({
        "norms": {name: [total, total / base_norm if base_norm else math.nan] for name, total in totals.items()},
        "cosine": _matrix(vectors, TaskVector.cosine),
        "sign_conflict": _matrix(vectors, TaskVector.sign_conflict),
        "by_layer": _by_layer(start, per_tensor),
        "warnings": list(dict.fromkeys(line for vector in each.values() for line in vector.warnings)),
    })  # fmt: skip


def _square(state_dict: StateDict, name: str) -> float:
    info = state_dict.tensors[name]
    total = 0.0
    for start in range(0, info.count, CHUNK):
        values = decode(state_dict.read(name, start, min(start + CHUNK, info.count)), info.dtype)
        total += float(values @ values)
    return total


def _matrix(vectors: Mapping[str, TaskVector], statistic: Any) -> dict[str, dict[str, float]]:
    names = list(vectors)
    table: dict[str, dict[str, float]] = {name: {} for name in names}
    for place, one in enumerate(names):
        for two in names[place:]:
            table[one][two] = table[two][one] = statistic(vectors[one], vectors[two])
    return {one: {two: table[one][two] for two in names} for one in names}


def _by_layer(base: Checkpoint, per_tensor: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    components = base.components()
    layers: dict[str, dict[str, float]] = {}
    for name, norms in per_tensor.items():
        for tensor, norm in norms.items():
            row = layers.setdefault(layer_of(tensor, components[tensor]), {})
            row[name] = math.hypot(row.get(name, 0.0), norm)
    return layers


def differences(first: Source, second: Source) -> list[dict[str, Any]]:
    """Return one row per tensor that differs in any bit: the kind of difference, its entries, the largest step.

    The second model is seen under the first's names, its token rows matched with the rows of the same tokens; where the
    two are not of one lineage, names are compared as stored. Entries are compared by their bits, so 0.0 and -0.0 differ
    and equal NaNs do not.
    """
    one, two = Checkpoint.open(first).underlying, Checkpoint.open(second).underlying
    try:
        aligned = align_all({BASE: one, "second": two}).census.inputs
        one, two = aligned[BASE], aligned["second"]
    except InputError:
        pass  # of two lineages: every tensor differs, and says so
    rows = []
    for name in dict.fromkeys((*one.tensors, *two.tensors)):
        if name not in one.tensors or name not in two.tensors:
            rows.append(_row(name, "only in the second" if name not in one.tensors else "only in the first"))
        elif (one.tensors[name].dtype, one.tensors[name].shape) != (two.tensors[name].dtype, two.tensors[name].shape):
            a, b = one.tensors[name], two.tensors[name]
            rows.append(_row(name, f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"))
        else:
            count, largest = _unequal(one, two, name)
            if count:
                rows.append(_row(name, "values", count, largest))
    return rows


def _row(name: str, what: str, count: int | None = None, largest: float | None = None) -> dict[str, Any]:
    return {"tensor": name, "difference": what, "entries": count, "largest": largest}


def _unequal(one: StateDict, two: StateDict, name: str) -> tuple[int, float | None]:
    info = one.tensors[name]
    count, largest = 0, 0.0
    for start in range(0, max(info.count, 1), CHUNK):
        stop = min(start + CHUNK, info.count)
        a, b = one.read(name, start, stop), two.read(name, start, stop)
        size = max(len(a), 1)
        unequal = (a.view(np.uint8).reshape(size, -1) != b.view(np.uint8).reshape(size, -1)).any(axis=1)
        count += int(unequal.sum())
        if unequal.any() and info.format.mergeable:
            with np.errstate(invalid="ignore"):
                gaps = np.abs(decode(a[unequal], info.dtype) - decode(b[unequal], info.dtype))
            largest = max(largest, float(gaps.max()))
    return count, largest if info.format.mergeable else None
