"""A task vector with part of its entries, by the methods that a fuse uses: TIES' trim, DARE's random drop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import UsageError
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.inputs import Inputs
from taskmerge.merging.plan import align_all, plan_aligned
from taskmerge.recipes import Merge, Recipe, Specialist


class Deltas(Protocol):
    """The interface of a task vector that sparsification uses."""

    @property
    def label(self) -> str:
        """The name in messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A mapping from tensor name to the shape of its delta."""

    @property
    def own(self) -> Mapping[str, StateDict]:
        """The tensors that only the specialist has."""

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return the entries [start, stop) of the flattened delta, float64."""


class Trimmed(StateDict):
    """`StateDict` of a task vector's deltas, float64, of which the rest is zero, and of its own tensors."""

    def __init__(self, vector: Deltas, kept: FusedStateDict) -> None:
        self.label = vector.label
        self._kept, self._own = kept, vector.own
        own = {name: state_dict.tensors[name] for name, state_dict in vector.own.items()}
        self.tensors = {**kept.tensors, **own}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        return self._own.get(name, self._kept).read(name, start, stop)


def sparsified(vector: Deltas, density: float, how: str, seed: int) -> StateDict:
    """Return the deltas with a share `density` of their entries; see `TaskVector.sparsify`. Raises UsageError."""
    if not 0 <= density <= 1:
        raise UsageError(f"density {density!r} is not a share of the entries", next_move="give a number from 0 to 1")
    methods: dict[str, str] = {"magnitude": "ties", "random": "dare_linear"}
    if how not in methods:
        raise UsageError(f"unknown way to sparsify {how!r}", next_move='use "magnitude" (TIES) or "random" (DARE)')
    if how == "random" and density == 0:
        raise UsageError("density 0 drops everything", next_move="give a density above 0")
    options: dict[str, Any] = {"density": density}
    label = vector.label if vector.label != BASE else f"{BASE} (2)"
    inputs = Inputs({BASE: _Nothing(vector), label: _Whole(vector)}, deltas={label: frozenset()})
    recipe = Recipe(base="", specialists={label: Specialist("")}, merge=Merge(methods[how], options=options), seed=seed)
    return Trimmed(vector, FusedStateDict(plan_aligned(recipe, inputs, align_all(inputs.state_dicts), bare=True)))


class _Whole(StateDict):
    """`StateDict` of all deltas of a task vector, float64."""

    def __init__(self, vector: Deltas) -> None:
        self.label, self._vector = vector.label, vector
        self.tensors = {name: TensorInfo(name, "F64", shape) for name, shape in vector.shapes.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        return self._vector.read(name, start, self.tensors[name].count if stop is None else stop)


class _Nothing(_Whole):
    """Zeros of the same shapes: what such a task vector starts from."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        return np.zeros((self.tensors[name].count if stop is None else stop) - start)
