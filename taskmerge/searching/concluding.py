"""The end of a search: the neighbourhood of the best, what it is worth on other pairs, and the files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.recipes import Recipe
from taskmerge.recipes.scores import retrieval_name
from taskmerge.recipes.varied import with_values
from taskmerge.searching.findings import Confirmed, Curve, CurvePoint, best_of, correlations
from taskmerge.searching.outcome import Outcome
from taskmerge.searching.points import Goal, Point, front
from taskmerge.searching.references import OWN, alone
from taskmerge.searching.runner import Runner
from taskmerge.searching.scored import Scored
from taskmerge.searching.scorer import Scorer, directions_of
from taskmerge.searching.setting import Setting
from taskmerge.searching.study import Study
from taskmerge.words.extras import missing
from taskmerge.words.tables import counted

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

CONFIRMED = 8
"""The best points that are looked at on pairs the search never saw."""
_WAIT = 1.0


def conclude(
    setting: Setting, runner: Runner, study: Study, batch_size: int, page: str | Path | None = None
) -> Outcome:
    """Wait for what still runs elsewhere, then find out what the study says.

    Raises:
        UsageError: when no point meets the floors; everything is written nevertheless.
    """
    told = False
    while running := study.running():
        if not told:
            said = ", ".join(f"trial {number} ({worker})" for number, worker in running.items())
            runner.say(f"waiting for trials of other processes: {said}")
            told = True
        study.bury()
        time.sleep(_WAIT)
    points = points_of(runner, study)
    single = len(setting.objectives) == 1
    curves: tuple[Curve, ...] = ()
    best = best_of(candidates(points))
    if best is not None and best.number is not None and setting.section.sensitivity:
        runner.around(study, best, best.number, setting.section.sensitivity)
        points = points_of(runner, study)
        curves = _curves(setting, runner, points, best, best.number)
        best = best_of(candidates(points))
    meeting = [point for point in candidates(points) if point.meets_floors]
    on_front = front(meeting) if meeting else []
    if single and best is not None:
        on_front = [best]
    recipes = {point.name: recipe_of(runner, point) for point in points if point.state == "scored"}
    confirmed = _confirm(setting, runner, best, on_front, meeting, recipes, batch_size)
    outcome = Outcome(
        objectives=tuple(objective.text for objective in setting.objectives),
        points=tuple(points),
        front=tuple(on_front),
        best=best,
        recipe=None if best is None else recipes[best.name],
        curves=curves,
        confirmed=tuple(confirmed),
        importances=tuple(study.importances(at) for at in range(len(setting.objectives))),
        correlations=tuple(correlations(points, setting.objectives[0])),
        notes=tuple(_notes(setting, runner, points)),
        folder=runner.folder.path,
        recipes={name: recipe.to_yaml() for name, recipe in recipes.items()},
    )
    from taskmerge.searching.files import write_files

    write_files(outcome, setting, page)
    if best is None:
        raise _nobody_meets(setting, candidates(points))
    return outcome


def points_of(runner: Runner, study: Study) -> list[Point]:
    """Return all points: references that no trial represents, then trials."""
    goal = runner.goal
    known = {trial.user_attrs.get("reference") for trial in study.finished()}
    found = [_point(name, goal, scored) for name, scored in runner.scored.items()
             if not name.startswith("trial ") and name not in known]  # fmt: skip
    return found + [_trial(trial) for trial in study.finished() if not _was_lost(trial)]


def _was_lost(trial: FrozenTrial) -> bool:
    return trial.state.name == "FAIL" and "failure" not in trial.user_attrs


def _point(name: str, goal: Goal, scored: Scored) -> Point:
    short = {floor: value for floor, value in goal.constraints(scored).items() if value > 0}
    return Point(name, {}, goal.results(scored), scored.means(), short)


def _trial(trial: FrozenTrial) -> Point:
    told = trial.user_attrs
    name = told.get("reference") or f"trial {trial.number}"
    if trial.state.name == "PRUNED":
        return Point(name, trial.params, state="stopped early", number=trial.number)
    if trial.state.name == "FAIL":
        return Point(name, trial.params, state="failed", why=str(told["failure"]), number=trial.number)
    short = {floor: value for floor, value in trial.constraints.items() if value > 0}
    around = (told["around"], told["axis"]) if "around" in told else None
    scores = told.get("scores", {})
    return Point(name, trial.params, tuple(trial.values), scores, short, around=around, number=trial.number)


def candidates(points: Sequence[Point]) -> list[Point]:
    """Return the points that can be the best: merges of all specialists of the recipe."""
    return [point for point in points if not point.name.startswith("only ")]


def recipe_of(runner: Runner, point: Point) -> Recipe:
    """Return an ordinary recipe of a point."""
    if point.name in runner.recipes:
        return runner.recipes[point.name]
    return with_values(runner.bench.recipe, runner.axes, point.values)


def scored_of(runner: Runner, point: Point) -> Scored:
    """Return the scores of a point, query by query: stored ones, or computed again."""
    return runner.kept(point.name, recipe_of(runner, point))


def _curves(setting: Setting, runner: Runner, points: Sequence[Point], best: Point, number: int) -> tuple[Curve, ...]:
    """Curves axis by axis, of each one objective after the other."""
    center = scored_of(runner, best)
    found = []
    for axis in setting.axes:
        beside = [point for point in points if point.around == (number, axis.name)]
        if not beside or axis.name not in best.values:
            continue
        shown = [(point, scored_of(runner, point)) for point in (best, *beside)]
        for at, objective in enumerate(setting.objectives):
            rows = [
                CurvePoint(point.values[axis.name], point.results[at], scored.interval(objective),
                           scored.minus(center, objective))
                for point, scored in shown
            ]  # fmt: skip
            said = objective.text if len(setting.objectives) > 1 else ""
            count = rows[0].interval.count
            found.append(Curve(axis.name, best.values[axis.name], tuple(sorted(rows, key=_order)), count, said))
    return tuple(found)


def _order(point: CurvePoint) -> tuple[bool, float, str]:
    word = isinstance(point.value, str)
    return word, 0.0 if word else float(point.value), str(point.value)


def _confirm(
    setting: Setting,
    runner: Runner,
    best: Point | None,
    on_front: Sequence[Point],
    meeting: Sequence[Point],
    recipes: dict[str, Recipe],
    batch_size: int,
) -> list[Confirmed]:
    """The best, then the front or the next best, on pairs the search never saw, each against the recipe's own."""
    if best is None or not setting.can_confirm:
        return []
    dev = {name: scored_of(runner, Point(name)) for name in (OWN, *map(alone, setting.section.floor))}
    runner.live.become(runner.bench.plan)
    scorer = None
    if setting.confirm:
        ways = directions_of(setting.objectives, list(setting.confirm))
        scorer = Scorer(runner.live, setting.confirm, ways, batch_size)
    other = Runner(runner.bench, runner.axes, runner.goal, runner.live, scorer, setting.own_confirm, runner.folder,
                   runner.say)  # fmt: skip
    held: dict[str, Scored] = {}
    for name in (*map(alone, runner.bench.recipe.specialists), OWN):
        if name in runner.recipes:
            held[name] = other.kept(f"confirm {name}", runner.recipes[name])
            one = name.removeprefix("only ")
            if scorer is not None and one in held[name].near:
                scorer.near[one] = held[name].near[one]
    next_best = sorted(meeting, key=lambda point: sum(point.results), reverse=True)
    chosen = {point.name: point for point in (best, *on_front, *next_best)}
    found = []
    for point in list(chosen.values())[:CONFIRMED]:
        try:
            scored = other.kept(f"confirm {point.name}", recipes[point.name])
        except TaskmergeError as error:
            runner.say(f"{point.name} on the held-out pairs: {error.problems[0]}")
            continue
        found.append(
            _confirmed(setting, point, scored, held, scored_of(runner, point).minus(dev[OWN], setting.objectives[0]))
        )
    return found


def _confirmed(setting: Setting, point: Point, scored: Scored, held: dict[str, Scored], dev_gain: object) -> Confirmed:
    from taskmerge.metrics.bootstrap import Interval
    from taskmerge.recipes.scores import parse_objective

    objective = setting.objectives[0]
    floors = {}
    for name, floor in setting.section.floor.items():
        score = parse_objective(retrieval_name(name, floor.metric))
        left = scored.minus(held[alone(name)], score)
        floors[name] = Interval(
            left.estimate - floor.change, left.low - floor.change, left.high - floor.change, left.count
        )
    assert isinstance(dev_gain, Interval)
    return Confirmed(point.name, scored.interval(objective), scored.minus(held[OWN], objective), dev_gain,
                     scored.means(), floors)  # fmt: skip


def _notes(setting: Setting, runner: Runner, points: Sequence[Point]) -> list[str]:
    store = runner.bench.store
    best = best_of(candidates(points))
    notes = []
    states = [point.state for point in points]
    if stopped := states.count("stopped early"):
        notes.append(f"{counted(stopped, 'trial')} stopped early: worse than the best so far on a part of the pairs")
    if failed := states.count("failed"):
        notes.append(f"{counted(failed, 'trial')} failed; the table lists the reasons")
    if store.left_out:
        notes.append(
            f"{store.left_out / 2**20:,.0f} MiB of results that trials share did not fit in --memory and "
            "were computed again in each trial"
        )
    if error := missing(["matplotlib"]):
        notes.append(f"pictures are written as SVG files only, without PNG files: {error.problems[0]}")
    if not setting.can_confirm:
        notes.append("no pairs were reserved (`confirm`): the score of the best on other data is unknown")
    if best is not None and best.number is None:
        notes.append(f"{best.name} is outside the ranges: no points near it were measured")
    edges = [
        axis.name
        for axis in setting.axes
        if best is not None and axis.bounds is not None and best.values.get(axis.name) in axis.bounds
    ]
    if edges:
        notes.append(f"the best is at the end of the range of {', '.join(edges)}: widen the range")
    alone_points = [point for point in points if point.name.startswith("only ")]
    better = [one.name for one in alone_points if best and sum(one.results) > sum(best.results)]
    if better:
        notes.append(f"{', '.join(better)} scores higher than every merge")
    return notes


def _nobody_meets(setting: Setting, points: Sequence[Point]) -> UsageError:
    """No point meets all floors: which comes nearest, and what would let it pass."""
    scored = [point for point in points if point.state == "scored"]
    nearest = min(scored, key=lambda point: sum(point.short.values()))
    missing = ", ".join(f"{name} by {value:.4f}" for name, value in nearest.short.items())
    floors = {
        name: round(setting.section.floor[name].change - value - 5e-4, 3) for name, value in nearest.short.items()
    }
    said = ", ".join(f"{name}: {value:g}" for name, value in floors.items())
    place = next(iter(setting.section.floor.values())).place or None
    return UsageError(
        f"none of {len(scored)} points meets the floors; {nearest.name} is nearest and misses {missing}",
        place,
        f"lower them (floor: {{{said}}}), widen the ranges, or run more trials; the report lists all points",
    )
