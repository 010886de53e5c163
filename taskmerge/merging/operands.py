"""The kernels' operands for each input: a model's tensor, or a task vector's own entries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from taskmerge.checkpoints.output.saving import AHEAD
from taskmerge.checkpoints.state_dict import StateDict, entries
from taskmerge.kernels import Operand
from taskmerge.merging.covariances import matrices
from taskmerge.merging.once import Once
from taskmerge.merging.steps import Plan, Source, TensorStep
from taskmerge.numbers.rounding import decode

Entries = Callable[[int, int], np.ndarray]


class Operands:
    """The inputs of a plan in the kernels' form.

    A specialist is a model, from which the base is subtracted, unless its task vector is at hand itself: it is one, it
    has a base of its own, it is an adapter whose product is known, or `protect` has taken directions away.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._shielded: Once[str, np.ndarray] = Once(AHEAD + 1)

    def base(self, step: TensorStep) -> Operand:
        """Return the base's operand in a step that merges."""
        return _stored(self.plan.base, step.source.name)

    def specialist(self, step: TensorStep, source: Source) -> Operand:
        """Return the operand of one specialist in a step."""
        if step.protected:
            place = step.specialists.index(source)
            return self._computed(step, lambda start, stop: self._protected(step)[place, start:stop])
        return self._unprotected(step, source)

    def delta(self, step: TensorStep, source: Source) -> np.ndarray:
        """Return the complete task vector of one specialist in one tensor: float64 (entries,)."""
        return self.part_of_delta(step, source, 0, step.info.count)

    def part_of_delta(self, step: TensorStep, source: Source, start: int, stop: int) -> np.ndarray:
        """Return entries [start, stop) of the task vector of one specialist in one tensor."""
        return self._delta_of(step, self.specialist(step, source), start, stop)

    def exact(self, step: TensorStep, source: Source) -> bool:
        """Return whether the delta was never rounded to a storage format: an adapter's own product."""
        return source.label in self.plan.adapters and self.plan.inputs[source.label].delta(source.name) is not None

    def _unprotected(self, step: TensorStep, source: Source) -> Operand:
        state_dict = self.plan.inputs[source.label]
        if source.label in self.plan.deltas:
            return _stored(state_dict, source.name, is_delta=True)
        own_base = self.plan.own_bases.get(source.label)
        if own_base is not None:
            return self._computed(step, partial(_difference, state_dict, own_base, source.name))
        product = state_dict.delta(source.name) if source.label in self.plan.adapters else None
        if product is not None:
            return self._computed(step, product)
        exact = state_dict.unrounded(source.name)
        return _stored(state_dict, source.name) if exact is None else Operand("F64", step.info.shape, exact)

    def _computed(self, step: TensorStep, read: Entries) -> Operand:
        return Operand("F64", step.info.shape, read, is_delta=True)

    def _delta_of(self, step: TensorStep, operand: Operand, start: int, stop: int) -> np.ndarray:
        values = decode(operand.read(start, stop), operand.dtype)
        if operand.is_delta:
            return values
        base = self.base(step)
        return values - decode(base.read(start, stop), base.dtype)

    def _protected(self, step: TensorStep) -> np.ndarray:
        """All deltas of a tensor without the protected directions: float64 (specialists, entries)."""

        def shielded() -> np.ndarray:
            import torch

            from taskmerge.methods.covariance import protected

            rows = [self._delta_of(step, self._unprotected(step, one), 0, step.info.count) for one in step.specialists]
            deltas = torch.from_numpy(np.stack(rows)).reshape(len(rows), *step.info.shape)
            shields = matrices(self.plan.inputs, step.specialists, step.protected)
            return protected(deltas, shields, self.plan.protect_energy).reshape(len(rows), -1).numpy()

        return self._shielded.get(step.info.name, shielded)


def _stored(state_dict: StateDict, name: str, is_delta: bool = False) -> Operand:
    info = state_dict.tensors[name]
    return Operand(info.dtype, info.shape, partial(state_dict.read, name), state_dict.view(name), is_delta)


def _difference(state_dict: StateDict, base: StateDict, name: str, start: int, stop: int) -> np.ndarray:
    """x - b, float64. A tensor that the own base lacks has no delta."""
    if name not in base.tensors:
        return np.zeros(stop - start)
    return entries(state_dict, name, start, stop) - entries(base, name, start, stop)
