"""Running points: the references first, then trials until there are enough, then the neighbourhood of the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.merging.bench import Bench
from taskmerge.recipes import Recipe
from taskmerge.recipes.axes import Axis
from taskmerge.recipes.scores import RETRIEVAL
from taskmerge.recipes.varied import with_values
from taskmerge.searching.folder import SearchFolder
from taskmerge.searching.live import LiveModel
from taskmerge.searching.points import Goal, Point
from taskmerge.searching.references import OWN, alone, on_axes, references
from taskmerge.searching.scored import Scored
from taskmerge.searching.scorer import Report, Scorer, Stopped, asked
from taskmerge.searching.study import Proposed, Study

Say = Callable[[str], None]
MOST_AXES = 8
"""Axes whose curves are drawn: the most important ones."""
FAILURES = 5
"""Trials that fail one after the other, none having succeeded, before the search gives up."""


@dataclass
class Runner:
    """The parts that score a point.

    Attributes:
        bench, live: what is merged, and where.
        scorer: of pairs; None without any.
        own: a function of the user's own; None without one.
        scored: name -> what a point scored, of those that were looked at in this process or kept before.
    """

    bench: Bench
    axes: Sequence[Axis]
    goal: Goal
    live: LiveModel
    scorer: Scorer | None
    own: Callable[[Any], Any] | None
    folder: SearchFolder
    say: Say
    scored: dict[str, Scored] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    _parts: dict[str, dict[int, float]] = field(default_factory=dict)

    def score(self, recipe: Recipe, report: Report | None = None) -> Scored:
        """Merge a recipe into the live model and score it. Raises Stopped, and TaskmergeError for what cannot be."""
        written = self.live.become(self.bench.planned(recipe))
        found = Scored({})
        if self.scorer is not None:
            self.scorer.moved(written)
            watched = self.goal.objectives[0] if report is not None and self._in_parts else None
            found = self.scorer.score(watched, report)
        if self.own is None:
            return found
        said = asked(self.own, self.live.model)
        return Scored({**found.values, **said.values}, found.groups, found.near)

    @property
    def _in_parts(self) -> bool:
        """Whether the objective can be computed on a part of the pairs."""
        patterns = [pattern for objective in self.goal.objectives for pattern in objective.patterns]
        return self.own is None and all(pattern.startswith(f"{RETRIEVAL}.") for pattern in patterns)

    def kept(self, name: str, recipe: Recipe, report: Report | None = None) -> Scored:
        """Score a point as `score` does, once in the life of a search: later calls read the stored scores."""
        groups = {} if self.scorer is None else self.scorer.groups
        found = self.scored.get(name) or Scored.load(self.folder.point(name), groups)
        if found is None:
            found = self.score(recipe, report)
            found.save(self.folder.point(name))
        found = found if self.scorer is None else self.scorer.agreed(found)
        self.scored[name], self.recipes[name] = found, recipe
        return found

    # References

    def references(self) -> None:
        """Score each specialist alone, the recipe itself, 1/N, MetaGPT's weights. Raises the recipe's own errors."""
        specialists = list(self.bench.recipe.specialists)
        for name, recipe in references(self.bench, self.axes).items():
            try:
                found = self.kept(name, recipe, self._remember_parts(name))
            except TaskmergeError as error:
                if name == OWN or name in map(alone, self.goal.floors):
                    raise
                self.say(f"{name}: not scored: {error.problems[0]}")
                continue
            for one in specialists:
                if self.scorer is not None and name == alone(one) and one in found.near:
                    self.scorer.near[one] = found.near[one]
        if self.scorer is not None:  # those that were looked at first did not know the others yet
            self.scored = {name: self.scorer.agreed(found) for name, found in self.scored.items()}
        self.goal = self.goal.with_specialists(self.scored, specialists)
        for objective in self.goal.objectives:
            objective.check(self.scored[OWN].values)

    def _remember_parts(self, name: str) -> Report | None:
        def note(part: int, value: float) -> bool:
            self._parts.setdefault(name, {})[part] = value
            return False

        return note if self._in_parts else None

    def teach(self, study: Study) -> None:
        """Give the study the references that its axes reach."""
        known = {trial.user_attrs.get("reference") for trial in study.finished()}
        for name, recipe in self.recipes.items():
            values = on_axes(recipe, self.axes)
            if name not in known and values is not None and not name.startswith("only "):
                self._add(study, values, self.scored[name], {"reference": name}, self._parts.get(name))

    def _add(
        self,
        study: Study,
        values: Mapping[str, Any],
        scored: Scored,
        told: Mapping[str, Any],
        parts: Mapping[int, float] | None = None,
    ) -> int:
        told = {**told, "scores": scored.means()}
        return study.add(values, self.goal.results(scored), self.goal.constraints(scored), told, parts)

    # Trials

    def trials(self, study: Study) -> None:
        """Run trials until there are enough. Raises TaskmergeError when all fail alike."""
        failures = 0
        while (proposed := study.propose()) is not None:
            why = self._trial(study, proposed)
            failures = failures + 1 if why else 0
            if failures >= FAILURES and len(study.complete()) == 0:
                raise UsageError(
                    f"the first {failures} trials all failed; the last: {why}", next_move="narrow the ranges"
                )

    def _trial(self, study: Study, proposed: Proposed) -> str:
        """Run one trial and note what became of it. Returns why it failed, "" for one that did not."""
        name = f"trial {proposed.number}"
        try:
            recipe = with_values(self.bench.recipe, self.axes, proposed.values)
            scored = self.score(recipe, lambda part, value: study.report(proposed, part, value))
            results, constraints = self.goal.results(scored), self.goal.constraints(scored)
        except Stopped:
            study.stop(proposed)
            self.say(f"{name}: {_said(proposed.values)}: stopped early, worse than the best so far")
            return ""
        except TaskmergeError as error:
            why = str(error.problems[0])
            study.fail(proposed, why)
            self.say(f"{name}: {_said(proposed.values)}: failed: {why}")
            return why
        scored.save(self.folder.point(name))
        self.scored[name] = scored
        study.tell(proposed, results, constraints, {"scores": scored.means()})
        self.say(
            f"{name}: {_said(proposed.values)}: {', '.join(f'{value:.4f}' for value in results)}{_short(constraints)}"
        )
        return ""

    # The neighbourhood of the best

    def around(self, study: Study, best: Point, number: int, count: int) -> None:
        """Score `count` points along each axis through a trial, the most important axes first."""
        known = {
            (trial.user_attrs.get("around"), trial.user_attrs.get("axis"), str(trial.params.get(axis)))
            for trial in study.complete()
            if (axis := trial.user_attrs.get("axis"))
        }
        shares = [study.importances(at) for at in range(len(self.goal.objectives))]
        axes = sorted(self.axes, key=lambda axis: -sum(share.get(axis.name, 0.0) for share in shares))
        axes = [axis for axis in axes if axis.name in best.values]
        for axis in axes[:MOST_AXES]:
            for value in axis.grid(count):
                if value != best.values[axis.name] and (number, axis.name, str(value)) not in known:
                    self._beside(study, best, number, axis, value)
        if len(axes) > MOST_AXES:
            self.say(f"no curves are drawn for {len(axes) - MOST_AXES} less important numbers")

    def _beside(self, study: Study, best: Point, number: int, axis: Axis, value: Any) -> None:
        values = {**best.values, axis.name: value}
        values = {
            one.name: values[one.name]
            for one in self.axes
            if one.name in values and one.applies(values, self.bench.recipe)
        }
        try:
            scored = self.score(with_values(self.bench.recipe, self.axes, values))
            at = self._add(study, values, scored, {"around": number, "axis": axis.name})
        except TaskmergeError as error:
            self.say(f"{axis.name} {value}: not scored: {error.problems[0]}")
            return
        name = f"trial {at}"
        scored.save(self.folder.point(name))
        self.scored[name] = scored


def _said(values: Mapping[str, Any]) -> str:
    """Values on the axes in a line."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _short(constraints: Mapping[str, float]) -> str:
    missed = [f"{name} by {value:.3f}" for name, value in constraints.items() if value > 0]
    return f"; below its floor: {', '.join(missed)}" if missed else ""
