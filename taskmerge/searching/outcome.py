"""The outcome of a search, as Python programs get it and as its files hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.recipes import Recipe
from taskmerge.searching.findings import Confirmed, Correlation, Curve
from taskmerge.searching.points import Point
from taskmerge.words.tables import Shown, Table, counted


@dataclass(frozen=True, repr=False)
class Outcome(Shown):
    """The result of a search.

    Attributes:
        objectives: the objectives that were maximised, as the user wrote them.
        points: trials and references, in order.
        front: points that no other point beats in every objective; for one objective, the best point alone.
        best: the best point that meets all floors; None if no point does.
        recipe: the recipe of the best point, an ordinary one.
        curves: scores along each axis through the best trial.
        confirmed: scores of points on pairs that the search did not use.
        importances: axis -> share, per objective.
        correlations: of agreement with real scores.
        notes: assumptions, omissions and unusual findings.
        folder: the folder of the study.
        recipes: the text of the recipe of each point, by its name.
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

    def in_one_line(self) -> str:
        """Return the best point and its scores, see `Shown`."""
        what = f"{counted(len(self.points), 'point')} for {' and '.join(self.objectives) or 'nothing'}"
        if self.best is None:
            return f"of {what}: none meets all floors"
        return f"of {what}: {self.best.name} is best with {', '.join(f'{value:.4g}' for value in self.best.results)}"

    def as_table(self) -> Table:
        """Return one row per point: its values on the axes, its results, and all its scores; see `Shown`."""
        axes = list(dict.fromkeys(name for point in self.points for name in point.values))
        scores = list(dict.fromkeys(name for point in self.points for name in point.scores))
        scores = [name for name in scores if name not in (*axes, *self.objectives)]
        rows = (
            (
                point.name, point.state, point == self.best, point.meets_floors,
                *(point.values.get(name) for name in axes),
                *(point.results[at] if at < len(point.results) else None for at in range(len(self.objectives))),
                *(point.scores.get(name) for name in scores),
            )
            for point in self.points
        )  # fmt: skip
        return Table(
            ("point", "state", "best", "meets_floors", *axes, *self.objectives, *scores), rows, len(self.points)
        )

    def sentences(self) -> list[str]:
        """Return the main findings, one sentence each."""
        said = []
        if self.best is not None:
            shown = ", ".join(f"{value:.4f}" for value in self.best.results)
            said.append(f"best: {self.best.name}, {' and '.join(self.objectives)} {shown}")
        said += [line for one in self.confirmed[:1] for line in (one.sentence(), *one.floor_sentences())]
        said += [curve.sentence() for curve in self.curves]
        said += [one.sentence() for one in self.correlations]
        return said

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
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
