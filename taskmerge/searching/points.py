"""Points of a search: what was merged, what it scored, and by how much it misses a floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from taskmerge.errors import RecipeError, UsageError
from taskmerge.recipes.scores import Objective, retrieval_name
from taskmerge.recipes.searching import Floor
from taskmerge.searching.references import alone
from taskmerge.searching.scored import Scored

State = Literal["scored", "stopped early", "failed"]


@dataclass(frozen=True)
class Point:
    """One merged model.

    name: "trial 12", "own", "only audio".  values: on the axes.  results: one an objective.  scores: means by name.
    short: floor -> by how much the point misses it; those that are met are left out.  why: of a failure.
    around: the number of the trial that it varies, and on which axis.  number: in the study; None for a reference that
    is on no axis.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    short: Mapping[str, float] = field(default_factory=dict)
    state: State = "scored"
    why: str = ""
    around: tuple[int, str] | None = None
    number: int | None = None

    @property
    def meets_floors(self) -> bool:
        """True if the point was scored and is below no floor."""
        return self.state == "scored" and not self.short


@dataclass(frozen=True)
class Goal:
    """The objectives and the floors of a search.

    against: set -> the specialist's score that its floor is relative to.
    """

    objectives: tuple[Objective, ...]
    floors: Mapping[str, Floor] = field(default_factory=dict)
    against: Mapping[str, float] = field(default_factory=dict)

    def results(self, scored: Scored) -> tuple[float, ...]:
        """Return one number per objective. Raises UsageError for a result that is not a number."""
        return tuple(scored.value(objective) for objective in self.objectives)

    def constraints(self, scored: Scored) -> dict[str, float]:
        """Floor -> how much is missing; at most 0 where it is met."""
        means = scored.means()
        return {
            name: self.against[name] + floor.change - means[retrieval_name(name, floor.metric)]
            for name, floor in self.floors.items()
        }

    def with_specialists(self, scored: Mapping[str, Scored], specialists: Sequence[str]) -> Goal:
        """Return the goal with the scores of specialists. Raises RecipeError for floors that no model can reach."""
        against = {}
        for name, floor in self.floors.items():
            if name not in specialists:
                move = f"give the set the name of its specialist ({', '.join(specialists)}), or leave out the floor"
                what = f"search: floor: {name!r} is not a specialist, so there is no score to compare with"
                raise RecipeError(what, floor.place or None, move)
            score = retrieval_name(name, floor.metric)
            means = scored[alone(name)].means()
            if score not in means:
                raise UsageError(
                    f"search: floor: {name}: {score} was not measured",
                    floor.place or None,
                    "use another metric in the floor",
                )
            against[name] = means[score]
            if against[name] + floor.change > 1:
                what = (
                    f"its specialist scores {against[name]:.3f}, and {floor.change:+g} is above 1, which is "
                    "impossible to meet"
                )
                raise RecipeError(f"search: floor: {name}: {what}", floor.place or None, f"write {{{name}: 0}}")
        return Goal(self.objectives, self.floors, against)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in one objective without a loss in another, best in the first first."""
    kept: list[Point] = []
    for one in points:
        beaten = any(
            all(b >= a for a, b in zip(one.results, other.results, strict=True)) and other.results != one.results
            for other in points
        )
        if not beaten and all(one.results != other.results for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda point: point.results, reverse=True)
