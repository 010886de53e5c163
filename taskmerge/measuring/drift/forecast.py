"""Forecast of drift from the weights alone, before there are probes: not a measurement.

The loss of recall follows neither number closely. They suggest modalities to check; `diagnose_drift` with probes
decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from taskmerge.checkpoints.components import BACKBONE, component_map, layer_index
from taskmerge.checkpoints.lineage.names import align
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import MergeError
from taskmerge.numbers.rounding import decode
from taskmerge.words.modalities import tower_of

WRITTEN_ENERGY = 0.9


@dataclass(frozen=True)
class LayerForecast:
    """One backbone layer (None: tensors outside the numbered layers).

    displacement: ‖fused - specialist‖ / ‖specialist - base‖.  overlap: share of the energy of (fused - specialist), in
    the matrices that read the residual stream, that acts on the subspace the projector writes to; None without such
    matrices.
    """

    layer: int | None
    displacement: float
    overlap: float | None


@dataclass(frozen=True)
class Forecast:
    """All layers, and the same over the whole backbone.

    unit: what displacements are measured in. "base" (‖base‖, of the layer) for a specialist that trained a projector
    alone: its backbone is the base's, and is moved only by the others.  cosine: of (specialist - base) and
    (fused - base); 0 without the first.  written: dimensions of the subspace that holds 90 % of the
    energy of the projector's last matrix.  chance: the overlap of a random displacement, written / width; None without
    a projector.
    """

    layers: tuple[LayerForecast, ...]
    displacement: float
    cosine: float
    overlap: float | None
    written: int | None
    chance: float | None
    unit: Literal["task vector", "base"] = "task vector"

    def __str__(self) -> str:
        if self.unit == "base":
            return (
                "the specialist's backbone is the base's own: only the other specialists move it, "
                f"by {self.displacement:.1%} of the base's norm"
            )
        return (
            f"the distance of the fused backbone from the specialist is {self.displacement:.2f} times the length "
            "of the specialist's task vector"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def forecast_drift(
    fused: StateDict,
    specialist: StateDict,
    base: StateDict,
    modality: str = "audio",
    components: Mapping[str, list[str]] | None = None,
) -> Forecast:
    """Forecast drift from three checkpoints, tensor by tensor, without running a model.

    A specialist whose backbone is the base's (only its projector was trained) is moved by the others only; see
    `Forecast.unit`.

    Args:
        fused: the merged model.
        specialist: the specialist whose modality is judged.
        base: the base of the merge.
        modality: "audio", "image" or "video".
        components: component -> patterns of tensor names, if the names and the config do not decide it.

    Returns:
        The forecast; it is not a measurement.

    Raises:
        MergeError: if the three share no tensors of the backbone.
    """
    parts = component_map(base.tensors, base.config, components, strict=False)
    sides = [align(base, side, components).state_dict for side in (specialist, fused)]
    subspace = _written_subspace(specialist, modality, components)
    sums: dict[int | None, _Sums] = {}
    for name in parts:
        info = base.tensors[name]
        if parts[name] != BACKBONE or not info.format.mergeable:
            continue
        if any(name not in side.tensors or side.tensors[name].shape != info.shape for side in sides):
            continue
        sum_of_layer = sums.setdefault(layer_index(name), _Sums())
        for before, own, after in _blocks([base, *sides], name):
            sum_of_layer.add(before, own, after, subspace)
    total = sum(sums.values(), _Sums())
    if not sums:
        raise MergeError(
            "the three models have no backbone tensors in common",
            next_move="check that base and specialist belong to the fused model",
        )
    unit: Literal["task vector", "base"] = "task vector" if total.task else "base"
    layers = sorted(sums, key=lambda layer: -1 if layer is None else layer)
    width, written = (None, None) if subspace is None else subspace.shape
    return Forecast(
        tuple(LayerForecast(layer, sums[layer].displacement(unit), sums[layer].overlap()) for layer in layers),
        total.displacement(unit),
        total.cosine(),
        total.overlap(),
        written,
        written / width if written and width else None,
        unit,
    )


class _Sums:
    """Sums of squares of one layer."""

    def __init__(self) -> None:
        self.task = self.moved = self.fused = self.product = self.reading = self.inside = self.base = 0.0

    def add(self, base: np.ndarray, own: np.ndarray, fused: np.ndarray, subspace: np.ndarray | None) -> None:
        task, moved, all_of_it = own - base, fused - own, fused - base
        self.base += float((base**2).sum())
        self.task += float((task**2).sum())
        self.moved += float((moved**2).sum())
        self.fused += float((all_of_it**2).sum())
        self.product += float((task * all_of_it).sum())
        if subspace is not None and moved.ndim == 2 and moved.shape[1] == len(subspace):
            self.reading += float((moved**2).sum())
            self.inside += float(((moved @ subspace) ** 2).sum())

    def __add__(self, other: _Sums) -> _Sums:
        total = _Sums()
        total.__dict__ = {name: value + other.__dict__[name] for name, value in self.__dict__.items()}
        return total

    def displacement(self, unit: str) -> float:
        whole = self.base if unit == "base" else self.task
        return math.sqrt(self.moved / whole) if whole else (math.inf if self.moved else 0.0)

    def cosine(self) -> float:
        return self.product / math.sqrt(self.task * self.fused) if self.task and self.fused else 0.0

    def overlap(self) -> float | None:
        return self.inside / self.reading if self.reading else None


def _blocks(sides: list[StateDict], name: str, entries: int = 1 << 23) -> Iterator[tuple[np.ndarray, ...]]:
    """One tensor of base, specialist and fused as float64, some rows at a time."""
    info = sides[0].tensors[name]
    row = math.prod(info.shape[1:]) if len(info.shape) == 2 else 1
    step = max(1, entries // max(row, 1)) * row
    for start in range(0, info.count, step):
        stop = min(start + step, info.count)
        arrays = [decode(side.read(name, start, stop), side.tensors[name].dtype) for side in sides]
        yield tuple(array.reshape(-1, row) if len(info.shape) == 2 else array for array in arrays)


def _written_subspace(
    specialist: StateDict, modality: str, components: Mapping[str, list[str]] | None
) -> np.ndarray | None:
    """(width, r) orthonormal: where the projector's last matrix (width, inputs) puts 90 % of its energy."""
    parts = component_map(specialist.tensors, specialist.config, components, strict=False)
    tower = tower_of(modality)
    matrices = [
        name
        for name in parts
        if parts[name] in (f"{tower}_projector", "projector") and len(specialist.tensors[name].shape) == 2
    ]
    if not matrices:
        return None
    info = specialist.tensors[matrices[-1]]
    matrix = decode(specialist.read(matrices[-1]), info.dtype).reshape(info.shape)
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    energy = np.cumsum(sizes**2) / (sizes**2).sum()
    return left[:, : int(np.searchsorted(energy, WRITTEN_ENERGY)) + 1]
