"""A stacked model as a view: its layer j is layer k of some input, nothing copied.

Tensors outside the backbone's layers come from the inputs of the first run (token tables) and of the last (all
else: final norm, head, towers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from taskmerge.checkpoints.components import BACKBONE, EMBEDDINGS, Components, component_map, layer_index, with_layer
from taskmerge.checkpoints.lineage.stacked_config import Section, stacked_config
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import MergeError, Problem

Run = Mapping[str, range]
"""Label -> its layers for the next layers of the output; the same number for each label."""
_MOST_PROBLEMS = 5


@dataclass(frozen=True)
class _Part:
    """One input's part of one run. start: the place of its first layer in the output. first, last: whether the
    run is."""

    label: str
    state_dict: StateDict
    layers: range
    start: int
    first: bool
    last: bool


class StackedStateDict(StateDict):
    """Tensors of one or more `StateDict` under the names that they have in a stacked model.

    own: whose label and side files these are. places: name -> (weights, name there).
    """

    def __init__(
        self, own: StateDict, places: Mapping[str, tuple[StateDict, str]], config: Mapping[str, object]
    ) -> None:
        self.label = own.label
        self.beside = replace(own.beside, config=config)
        self._places = dict(places)
        self.tensors: dict[str, TensorInfo] = {
            name: replace(state_dict.tensors[there], name=name) for name, (state_dict, there) in self._places.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        state_dict, there = self._places[name]
        return state_dict.read(there, start, stop)

    def read_into(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        """See `StateDict.read_into`."""
        state_dict, there = self._places[name]
        state_dict.read_into(there, start, stop, out)

    def view(self, name: str) -> np.ndarray | None:
        """See `StateDict.view`."""
        state_dict, there = self._places[name]
        return state_dict.view(there)

    def release(self, name: str, start: int, stop: int) -> None:
        """See `StateDict.release`: not for a layer that is used several times, which may still be read."""
        state_dict, there = self._places[name]
        if sum(place == (state_dict, there) for place in self._places.values()) == 1:
            state_dict.release(there, start, stop)

    def delta(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.delta`."""
        state_dict, there = self._places[name]
        return state_dict.delta(there)

    def unrounded(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.unrounded`."""
        state_dict, there = self._places[name]
        return state_dict.unrounded(there)

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        state_dict, there = self._places[name]
        return state_dict.stored_name(there)


def stacked(
    inputs: Mapping[str, StateDict],
    runs: Sequence[Run],
    own_bases: Mapping[str, StateDict] | None = None,
    overrides: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, StateDict], dict[str, StateDict], list[str]]:
    """Return the inputs and own bases, under one naming, with the output's layers, and notes for the user.

    A run that does not name the base takes the first input that it names in its place. An input whose layers stand as
    they are is handed back itself. Raises MergeError for layers that an input does not have, or that do not fit one
    another.
    """
    components = _components([*inputs.values(), *(own_bases or {}).values()], inputs[BASE].config, overrides)
    _check_layers(inputs, runs, components)
    made, notes = {}, []
    for label, state_dict in inputs.items():
        made[label], said = _stack(label, state_dict, inputs, runs, components)
        notes += said if label == BASE else []
    bases = {label: _stack(label, own, inputs, runs, components)[0] for label, own in (own_bases or {}).items()}
    return made, bases, notes


def stands_in(label: str, name: str, home: str, runs: Sequence[Run]) -> bool:
    """Return whether an input takes part in a tensor of the output, whose component is `home`."""
    layer = layer_index(name)
    if home != BACKBONE or layer is None:
        return label in runs[0 if home == EMBEDDINGS else -1]
    tops = accumulate(_height(run) for run in runs)
    return any(label in run and top - _height(run) <= layer < top for run, top in zip(runs, tops, strict=True))


def _components(
    everything: Sequence[StateDict], config: Mapping[str, object], overrides: Mapping[str, Sequence[str]] | None
) -> Components:
    return component_map(
        {name: i for state_dict in everything for name, i in state_dict.tensors.items()}, config, overrides
    )


def _stack(
    label: str, own: StateDict, inputs: Mapping[str, StateDict], runs: Sequence[Run], components: Components
) -> tuple[StateDict, list[str]]:
    parts = list(_parts(label, own, inputs, runs))
    total = sum(_height(run) for run in runs)
    depth = _depth(own, components)
    if [(part.state_dict, part.layers, total) for part in parts] == [(own, range(depth), depth)]:
        return own, []
    sections = [Section(part.state_dict.config, part.layers, _depth(part.state_dict, components)) for part in parts]
    config, notes = stacked_config(own.config, depth, sections, total)
    return StackedStateDict(own, _places(parts, components), config), notes


def _parts(label: str, own: StateDict, inputs: Mapping[str, StateDict], runs: Sequence[Run]) -> Iterator[_Part]:
    """What an input brings to each run in which it has a say."""
    starts = accumulate((_height(run) for run in runs), initial=0)
    for number, (run, start) in enumerate(zip(runs, starts, strict=False)):
        who = next(iter(run)) if label == BASE and BASE not in run else label
        if who in run:
            state_dict = own if who == label else inputs[who]
            yield _Part(who, state_dict, run[who], start, number == 0, number == len(runs) - 1)


def _places(parts: Sequence[_Part], components: Components) -> dict[str, tuple[StateDict, str]]:
    """Name in the stacked model -> whose tensor it is, and its name there."""
    places: dict[str, tuple[StateDict, str]] = {}
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    problems: list[Problem] = []
    for part in parts:
        for there, info in part.state_dict.tensors.items():
            home, layer = components.home(there), layer_index(there)
            if home != BACKBONE or layer is None:
                if part.first if home == EMBEDDINGS else part.last:
                    places[there] = part.state_dict, there
            elif layer in part.layers:
                places[with_layer(there, part.start + layer - part.layers[0])] = part.state_dict, there
                shape, first = shapes.setdefault(there, (info.shape, part.label))
                if shape != info.shape:
                    told = f"{there!r} is {list(shape)} in {first} and {list(info.shape)} in {part.label}"
                    problems.append(Problem(told, None, "stack only layers of models of one architecture and size"))
    if problems:
        raise MergeError(problems[:_MOST_PROBLEMS])
    return places


def _check_layers(inputs: Mapping[str, StateDict], runs: Sequence[Run], components: Components) -> None:
    depths = {label: _depth(state_dict, components) for label, state_dict in inputs.items()}
    problems = [
        Problem(
            f"{label} has {depths[label]} layers; stack[{number}] takes layer {layers[-1]} of it",
            None,
            "use layers that it has, counted from 0",
        )
        for number, run in enumerate(runs)
        for label, layers in run.items()
        if layers[-1] >= depths[label]
    ]
    if problems:
        raise MergeError(problems[:_MOST_PROBLEMS])


def _height(run: Run) -> int:
    return len(next(iter(run.values())))


def _depth(state_dict: StateDict, components: Components) -> int:
    found = (layer_index(name) for name in state_dict.tensors if components.home(name) == BACKBONE)
    return max((index + 1 for index in found if index is not None), default=0)
