"""The outcome of a search, as Python programs get it and as its files hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.recipes import Recipe
from taskmerge.searching.findings import Confirmed, Correlation, Curve
from taskmerge.searching.points import Point


@dataclass(frozen=True)
class Outcome:
    """All that a search found.

    Attributes:
        objectives: what was maximised, as written.
        points: trials and references, in order.
        front: those that no other beats in everything; one objective: the best alone.
        best: the best that meets all floors; None when none does.
        recipe: the best one's recipe, an ordinary one.
        curves: along each axis through the best trial.
        confirmed: points on pairs that the search never saw.
        importances: axis -> share, per objective.
        correlations: of agreement with real scores.
        notes: what was assumed, left out or found odd.
        seconds: of this process's points: merging and scoring.
        folder: where everything lies.
    """

    objectives: tuple[str, ...]
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    best: Point | None
    recipe: Recipe | None
    curves: tuple[Curve, ...] = ()
    confirmed: tuple[Confirmed, ...] = ()
    importances: tuple[Mapping[str, float], ...] = ()
    correlations: tuple[Correlation, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path = Path()
    recipes: Mapping[str, str] = field(default_factory=dict, repr=False)

    def sentences(self) -> list[str]:
        """What to know, in plain words."""
        said = []
        if self.best is not None:
            shown = ", ".join(f"{value:.4f}" for value in self.best.results)
            said.append(f"best: {self.best.name}, {' and '.join(self.objectives)} {shown}")
        said += [line for one in self.confirmed[:1] for line in (one.sentence(), *one.floor_sentences())]
        said += [curve.sentence() for curve in self.curves]
        said += [one.sentence() for one in self.correlations]
        return said

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        curves = [{**asdict(curve), "flat": curve.flat, "sentence": curve.sentence()} for curve in self.curves]
        return {
            "objectives": list(self.objectives),
            "best": None if self.best is None else self.best.name,
            "front": [point.name for point in self.front],
            "points": [{**asdict(point), "recipe": self.recipes.get(point.name)} for point in self.points],
            "curves": curves,
            "confirmed": [{**asdict(one), "sentence": one.sentence()} for one in self.confirmed],
            "importances": [dict(one) for one in self.importances],
            "correlations": [asdict(one) for one in self.correlations],
            "sentences": self.sentences(),
            "notes": list(self.notes),
        }
