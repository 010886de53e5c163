"""What trim "model" keeps: thresholds over every tensor that is merged that way, whatever else varies between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from taskmerge import kernels
from taskmerge.kernels import KeepLargest, Measurement
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

    def of(self, step: TensorStep, sources: tuple[Source, ...]) -> Measurement | None:
        """The bounds for one step, one entry per source; None where it does not trim over the model."""
        ways = self._ways(step)
        if ways is None:
            return None
        found = [self._found[source.label][ways[source.label]] for source in sources]
        return Measurement(lowest=tuple(low for low, _ in found), highest=tuple(high for _, high in found))

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
        steps = [(step, ways) for step in self._operands.plan.steps if (ways := self._ways(step)) is not None]
        if self._store is None:
            return self._measured(steps)
        energy = self._operands.plan.protect_energy
        said = tuple((step.info.name, step.specialists, step.protected, tuple(ways.items())) for step, ways in steps)
        found: dict[str, Bounds] = self._store.get(
            ("passes over the model", energy, said), lambda: self._measured(steps)
        )
        return found

    def _measured(self, steps: Sequence[tuple[TensorStep, Mapping[str, KeepLargest]]]) -> dict[str, Bounds]:
        labels = list(dict.fromkeys(label for _, ways in steps for label in ways))
        rows = []
        for step, _ in steps:
            by_label = {source.label: source for source in step.specialists}
            present = [by_label.get(label) for label in labels]
            operands = [None if one is None else self._operands.specialist(step, one) for one in present]
            rows.append((self._operands.base(step), operands))
        keeps = [list(dict.fromkeys(ways[label] for _, ways in steps if label in ways)) for label in labels]
        return dict(zip(labels, kernels.measure_model(rows, keeps, device=self._device), strict=True))
