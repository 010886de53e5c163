"""Scores of the live model on the search's pairs: only what moved is embedded again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import TaskmergeError, UsageError, clipped, first_line
from taskmerge.measuring.drift.statistics import neighbour_overlap
from taskmerge.measuring.evaluation.local import Groups
from taskmerge.measuring.evaluation.repeated import DirectionScores, RepeatedSet
from taskmerge.metrics.retrieval import METRICS
from taskmerge.recipes.scores import AGREEMENT, DIRECTIONS, Objective, retrieval_name
from taskmerge.searching.live import LiveModel
from taskmerge.searching.scored import Scored
from taskmerge.training.components import on_the_way
from taskmerge.words.modalities import TEXT, tower_of

Report = Callable[[int, float], bool]
"""(number of a part of the pairs, the objective on it) -> whether to stop."""


class Stopped(Exception):
    """A point that is known to be worse was left."""


class Scorer:
    """Sets of pairs on one live model.

    Attributes:
        near: set -> neighbours under the specialist that is named like it; agreement is with these.
    """

    def __init__(self, model: LiveModel, sets: Mapping[str, Pairs], directions: Sequence[str], batch_size: int) -> None:
        """Prepare all items and texts once.

        Raises:
            UsageError: for a set that the model has no encoder for, or items that it does not take.
        """
        embedder = model.model
        assert isinstance(embedder, Embedder)
        self.near: dict[str, np.ndarray] = {}
        self._model = model
        self._sets: dict[str, RepeatedSet] = {}
        for name, pairs in sets.items():
            embedder.check_takes(pairs.modality, f"{name} ({pairs.source})")
            own = embedder.prompted(None, name)
            frozen = not self._moves(pairs.modality)
            self._sets[name] = RepeatedSet(own, pairs, directions, encoded=frozen, batch_size=batch_size)

    def _moves(self, modality: str) -> bool:
        """Whether a merge may change the encoder that items of a modality go through."""
        encoder = _encoder(modality)
        merged = (step.info.name for step in self._model.bench.plan.steps if step.action == "merge")
        return bool(encoder) and any(self._model.homes.get(name) == encoder for name in merged)

    @property
    def groups(self) -> dict[str, Groups]:
        """Name of a score -> queries that are resampled together."""
        found: dict[str, Groups] = {}
        for name, one in self._sets.items():
            texts = one.right.tolist()
            found |= {retrieval_name(name, metric): texts for metric in METRICS}
            found[f"{AGREEMENT}.{name}"] = texts
        return found

    @property
    def parts(self) -> int:
        """In how many parts all sets can be looked at."""
        return min((len(one.blocks) for one in self._sets.values()), default=1)

    def moved(self, names: Sequence[str]) -> None:
        """Say which tensors of the model were written."""
        homes = {self._model.homes.get(name, "backbone") for name in names}
        texts = any(on_the_way(home, TEXT) for home in homes)
        for name, one in list(self._sets.items()):
            if one.encoded and _encoder(one.pairs.modality) in homes:  # what was encoded before is of another encoder
                one = self._sets[name] = replace(one, encoded=False)
            one.moved(any(on_the_way(home, one.pairs.modality) for home in homes), texts)

    def score(self, objective: Objective | None = None, report: Report | None = None) -> Scored:
        """Scores of the model as it is.

        Args:
            objective, report: after each part of the pairs `report` is told the objective on it, and may stop.

        Raises:
            Stopped: when `report` says so.
            UsageError: for embeddings with NaN or infinity.
        """
        if objective is not None and report is not None:
            for part in range(self.parts):
                found = {name: one.block_scores(part) for name, one in self._sets.items()}
                if report(part, Scored(_values(found)).value(objective)):
                    raise Stopped
        values = _values({name: one.scores() for name, one in self._sets.items()})
        near = {name: one.neighbours() for name, one in self._sets.items()}
        return self.agreed(Scored(values, self.groups, near))

    def agreed(self, scored: Scored) -> Scored:
        """Return the same with its agreement with every specialist that is scored so far."""
        found = {
            f"{AGREEMENT}.{name}": neighbour_overlap(self.near[name], rows)
            for name, rows in scored.near.items()
            if name in self.near
        }
        return Scored({**scored.values, **found}, scored.groups, scored.near)


def _encoder(modality: str) -> str:
    """The component that encodes items of a modality; a text has none."""
    return "" if modality == TEXT else f"{tower_of(modality)}_encoder"


def _values(found: Mapping[str, Mapping[str, DirectionScores]]) -> dict[str, np.ndarray]:
    return {
        retrieval_name(name, metric, direction): scored.scores[metric]
        for name, directions in found.items()
        for direction, scored in directions.items()
        for metric in METRICS
    }


def directions_of(objectives: Sequence[Objective], sets: Sequence[str]) -> list[str]:
    """Return the directions that objectives use; an item searching its text is always included."""
    names = [retrieval_name(one, metric, way) for one in sets for way in DIRECTIONS for metric in METRICS]
    asked = [name for objective in objectives for name in objective.names(names) if _only(objective, name)]
    back = any(name.endswith(".from_text") for name in asked)
    return list(DIRECTIONS) if back else [DIRECTIONS[0]]


def _only(objective: Objective, name: str) -> bool:
    """Whether a pattern of an objective speaks of a direction, and does not only let it through its last `*`."""
    return name.endswith(".from_text") and any("from_text" in pattern for pattern in objective.patterns)


def asked(objective: Callable[[Any], Any], model: Any) -> Scored:
    """Return the scores of a model from a user's own function: a number, or numbers by name.

    Raises:
        UsageError: for anything else, and for whatever it raises.
    """
    try:
        found = objective(model)
    except TaskmergeError:
        raise
    except Exception as error:
        what = f"the objective raised {type(error).__name__}: {clipped(first_line(error), 300)}"
        raise UsageError(what, next_move="correct the objective") from error
    table = found if isinstance(found, Mapping) else {"score": found}
    try:
        return Scored({str(name): np.array([float(value)]) for name, value in table.items()})
    except (TypeError, ValueError):
        raise UsageError(
            f"the objective returned {clipped(repr(found), 100)}", next_move="return a number, or numbers by name"
        ) from None
