"""Thresholds of trim "model", over every tensor that is trimmed so, whatever other options differ between them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from taskmerge import kernels
from taskmerge.kernels import KeepLargest, Measurement, ModelSearch
from taskmerge.merging.operands import Operands
from taskmerge.merging.steps import Source, TensorStep
from taskmerge.methods.remembered import Remembered

Bounds = Mapping[KeepLargest, tuple[float, float]]


class ModelThresholds:
    """The magnitudes between which each specialist's entries are kept, found once, when first asked for.

    Weights, scales, elections and densities may differ from tensor to tensor: each density has one threshold over all
    of a specialist's entries in all of these tensors.
    """

    def __init__(self, operands: Operands, device: str, store: Remembered | None = None) -> None:
        """store: where they are kept for other merges of the same inputs."""
        self._operands = operands
        self._device = device
        self._store = store
        self.measured: ModelSearch | None = None
        """What several processes have found together, when they have."""

    def of(self, step: TensorStep, sources: tuple[Source, ...]) -> Measurement | None:
        """Return the bounds for one step, one entry per source; None if it does not trim over the model."""
        ways = self._ways(step)
        if ways is None:
            return None
        found = [self._found[source.label][ways[source.label]] for source in sources]
        return Measurement(lowest=tuple(low for low, _ in found), highest=tuple(high for _, high in found))

    @cached_property
    def steps(self) -> list[TensorStep]:
        """The steps that are trimmed over the model, one per row of `search`."""
        return [step for step in self._operands.plan.steps if self._ways(step) is not None]

    @cached_property
    def search(self) -> ModelSearch:
        """The search for all thresholds, not begun: a row a step, a column a specialist."""
        steps = [(step, self._ways(step) or {}) for step in self.steps]
        rows = []
        for step, _ in steps:
            by_label = {source.label: source for source in step.specialists}
            present = [by_label.get(label) for label in self._labels]
            operands = [None if one is None else self._operands.specialist(step, one) for one in present]
            rows.append((self._operands.base(step), operands))
        keeps = [list(dict.fromkeys(ways[label] for _, ways in steps if label in ways)) for label in self._labels]
        return kernels.model_search(rows, keeps, device=self._device)

    @cached_property
    def _labels(self) -> list[str]:
        return list(dict.fromkeys(label for step in self.steps for label in self._ways(step) or ()))

    def _ways(self, step: TensorStep) -> dict[str, KeepLargest] | None:
        """Specialist -> how it is trimmed over the model in this step."""
        program = self._operands.plan.program(step) if step.action == "merge" else None
        if program is None or not program.weights:
            return None
        ways = {source.label: how for source, how in zip(step.specialists, program.ways, strict=True)}
        return {
            label: how for label, how in ways.items() if isinstance(how, KeepLargest) and how.across == "model"
        } or None

    @cached_property
    def _found(self) -> dict[str, Bounds]:
        if self.measured is not None:
            bounds = self.measured.bounds()
        elif self._store is None:
            bounds = self.search.find()
        else:
            ways = tuple(
                (step.info.name, step.specialists, step.protected, tuple((self._ways(step) or {}).items()))
                for step in self.steps
            )
            asked = ("passes over the model", self._operands.plan.protect_energy, ways)
            bounds = self._store.get(asked, self.search.find)
        return dict(zip(self._labels, bounds, strict=True))
